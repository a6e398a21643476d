"""Whether a folder is a nanotron checkpoint, and which of its steps is meant."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import source_error
from reshard.formats.nanotron import LATEST, METADATA
from reshard.store.regular_file import FileTooLargeError, read_regular, unreadable

_MAX_TRACKER_NBYTES = 64


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
        step = _latest(path / LATEST)
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


def _latest(file: Path) -> str | None:
    """The step that `latest.txt` names; None where there is no such file.

    Raises: ReshardError[bad-tracker | source-unreadable].
    """
    if not file.is_file():
        return None
    try:
        text = read_regular(file, _MAX_TRACKER_NBYTES).decode("ascii").strip()
    except (UnicodeDecodeError, FileTooLargeError):
        text = ""
    except OSError as error:
        raise unreadable(file, error) from None
    if text.isdigit():
        return text
    raise source_error(
        "bad-tracker",
        f"{file} does not name a step",
        notes=["nanotron writes the number of the last step into it, and nothing else"],
        helps=["choose a step with `--step`, or write its number into the file"],
    )
