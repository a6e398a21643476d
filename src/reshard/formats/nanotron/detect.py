"""Whether a folder is a nanotron checkpoint, and which of its steps is meant."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import source_error
from reshard.formats.nanotron import LATEST, METADATA


def detect(path: Path) -> bool:
    """Whether a folder is that of a step, or of a run with its `latest.txt`."""
    if not path.is_dir():
        return False
    return _is_step(path) or bool(steps(path))


def steps(path: Path) -> tuple[str, ...]:
    """The steps that a run's folder holds, by number."""
    found = [item.name for item in path.iterdir() if item.name.isdigit() and _is_step(item)]
    return tuple(sorted(found, key=int))


def _is_step(path: Path) -> bool:
    return (path / METADATA).is_file() and (path / "model").is_dir()


def step_folder(path: Path, step: str | None) -> Path:
    """The folder of one step.

    Raises: ReshardError[unknown-step | ambiguous-step].
    """
    if _is_step(path):
        if step is None or step == path.absolute().name:
            return path
        raise source_error(
            "unknown-step",
            f"{path} has no step `{step}`",
            notes=["it is the folder of a single step"],
            helps=["leave `--step` out, or give the folder above"],
        )
    known = steps(path)
    if step is None:
        latest = path / LATEST
        step = latest.read_text(encoding="utf-8").strip() if latest.is_file() else None
    if step in known:
        return path / step
    listed = ", ".join(f"`{item}`" for item in known)
    if step is not None:
        raise source_error(
            "unknown-step", f"{path} has no step `{step}`", notes=[f"it has {listed}"]
        )
    if len(known) == 1:
        return path / known[0]
    raise source_error(
        "ambiguous-step",
        f"{path} has {len(known)} steps, and no `{LATEST}` says which one is meant",
        notes=[f"they are {listed}"],
        helps=[f"choose one with `--step {known[-1]}`"],
    )
