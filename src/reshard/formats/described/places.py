"""Where in the folders of a run the files lie that a description of ours is of."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import source_error
from reshard.formats.described.shipped import find_descriptions
from reshard.formats.steps import (
    choose_step,
    find_steps,
    refuse_another,
    several_models,
    step_number,
)
from reshard.store.source import LocalSource


def has_described(path: Path) -> bool:
    """Whether a folder has such files, is a step with a folder of them, or the run of such steps.

    A run in whose own folder a model lies is that model.
    """
    if find_descriptions(path) or _models(path):
        return True
    patterns = ("*.safetensors", "pytorch_model*.bin")
    is_model = any(any(LocalSource(path).matching(pattern)) for pattern in patterns)
    return not is_model and bool(_steps(path))


def find_place(path: Path, step: str | None) -> Path:
    """The folder with the files.

    Args:  step: of a run, its name or its number.
    Raises: ReshardError[unknown-step | several-models].
    """
    if find_descriptions(path):
        if step is not None:
            raise source_error(
                "unknown-step",
                f"{path} has no step `{step}`",
                notes=["a layout describes the files of one step"],
                helps=["give the folder of the step, and leave `--step` out"],
            )
        return path
    if _models(path):
        refuse_another(path, step)
    else:
        path = path / choose_step(path, _steps(path), step)
    if find_descriptions(path):
        return path
    models = _models(path)
    if len(models) > 1:
        raise several_models(path, [item.name for item in models])
    return models[0]


def _steps(run: Path) -> dict[str, int]:
    return find_steps(run, lambda item: bool(find_descriptions(item) or _models(item)))


def _models(step: Path) -> list[Path]:
    """The models of a step that has a folder for each: the `actor` and the `critic` of verl."""
    if step_number(step.name) is None:
        return []
    folders = (step / name for name in LocalSource(step).folders())
    return [folder for folder in folders if find_descriptions(folder)]
