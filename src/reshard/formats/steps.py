"""The folders of the steps of a run, and steps whose parts are checkpoints of their own.

Source: ByteCheckpoint checkpointer/base_checkpointer.py; NeMo-Automodel components/checkpoint/
checkpointing.py; slime backends/fsdp_utils/checkpoint.py; verl utils/checkpoint/
checkpoint_manager.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.store.source import LocalSource

MODELS = ("model", "weights")
"""What the folder of the model is called."""

OPTIMIZERS = ("optim", "optimizer")
"""What the folder of the optimizer is called."""

TRACKER = "latest_checkpointed_iteration.txt"
"""The file with the number of the last step: Megatron's, and of those who took its name over."""

_LATEST = "LATEST"
"""A link to the folder of the last step, as NeMo-Automodel makes it."""

_NUMBER = re.compile(
    r"(?:.*(?:step|iter|iteration|epoch|checkpoint|ckpt|save)[-_.=]?)?(\d+)(?:\.ckpt)?", re.I
)
"""Names of the folders of steps: a number, or one behind a word for what it counts."""


def step_number(name: str) -> int | None:
    """The number of the step that a folder is named after."""
    match = _NUMBER.fullmatch(name)
    return int(match[1]) if match else None


def find_steps(run: Path, is_one: Callable[[Path], bool]) -> dict[str, int]:
    """The folders of the steps of a run with their numbers, in ascending order.

    Args:  is_one: whether a folder is a checkpoint.
    """
    numbers = {name: step_number(name) for name in LocalSource(run).folders()}
    steps = {
        name: number
        for name, number in numbers.items()
        if number is not None and is_one(run / name)
    }
    return dict(sorted(steps.items(), key=lambda pair: (pair[1], pair[0])))


def choose_step(run: Path, steps: Mapping[str, int], step: str | None) -> str:
    """The folder of one of the steps of a run.

    Args:  steps: as of `find_steps`.  step: a name, or the number in it; the one that the run says
           is its last by default, or else the one with the highest number.
    Raises: ReshardError[unknown-step].
    """
    name_or_number = step if step is not None else last_step(run, steps)
    matches = [name for name in steps if name_or_number is None or _is_step(name, name_or_number)]
    if not matches:
        raise source_error(
            "unknown-step",
            f"{run} has no step `{name_or_number}`",
            notes=[f"steps: {', '.join(f'`{name}`' for name in steps) or 'none'}"],
            helps=["give the name of one of these folders, or the number at its end"],
        )
    return matches[-1]


def last_step(run: Path, steps: Mapping[str, int]) -> str | None:
    """The step that a run says is its last, if it is one of those that are known."""
    link = run / _LATEST
    if link.is_symlink() and Path(os.readlink(link)).name in steps:
        return Path(os.readlink(link)).name
    source = LocalSource(run)
    noted = source.note(TRACKER) if source.has(TRACKER) else ""
    return noted if any(_is_step(name, noted) for name in steps) else None


def refuse_another(path: Path, step: str | None) -> None:
    """Refuse a step that the folder of a step is not of.

    Raises: ReshardError[unknown-step].
    """
    if step is not None and not _is_step(path.name, step):
        raise source_error(
            "unknown-step",
            f"{path} is the folder of `{path.name}`, not of step `{step}`",
            helps=["give the folder above it, or leave `--step` out"],
        )


def _is_step(name: str, step: str) -> bool:
    """Whether a folder is that of a step, by its name or by the number in it."""
    is_number = step.isascii() and step.isdecimal()
    return step == name or (is_number and step_number(name) == int(step))


def several_models(root: Path, folders: list[str]) -> ReshardError:
    """The error for a step with more than one model, or more than one optimizer."""
    return source_error(
        "several-models",
        f"{root} holds several models or optimizers",
        notes=[f"folders: {', '.join(f'`{name}`' for name in folders)}"],
        helps=["give one of these folders"],
    )


def is_of_parts(folder: Path) -> bool:
    """Whether a step has a folder of its own for its model, or for its optimizer, with `.metadata`.

    Megatron's `weights` of NeMo have a `metadata.json` besides.
    """
    source = LocalSource(folder)
    return any(
        source.has(f"{name}/.metadata") and not source.has(f"{name}/metadata.json")
        for name in (*MODELS, *OPTIMIZERS)
    )


def is_tracked_by_another(run: Path) -> bool:
    """Whether the tracker of a run stands next to steps that are not Megatron's."""
    source = LocalSource(run)
    steps = [*source.matching("iter_*", folders=True)]
    if steps:
        return all(is_of_parts(run / step) for step in steps)
    return any(source.matching("global_step_*", folders=True))
