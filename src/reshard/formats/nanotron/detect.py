"""Whether a folder is a nanotron checkpoint, and which of its steps is meant."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import source_error
from reshard.formats.nanotron import LATEST, METADATA
from reshard.formats.steps import choose_step, find_steps, refuse_another
from reshard.store.source import LocalSource


def detect(path: Path) -> bool:
    """Whether a folder is that of a step, or of a run with its `latest.txt`."""
    return path.is_dir() and (_is_step(path) or bool(find_steps(path, _is_step)))


def _is_step(path: Path) -> bool:
    source = LocalSource(path)
    return source.has(METADATA) and source.has_folder("model")


def step_folder(path: Path, step: str | None) -> Path:
    """The folder of one step.

    Raises: ReshardError[unknown-step | ambiguous-step | bad-tracker | source-unreadable].
    """
    if _is_step(path):
        refuse_another(path.absolute(), step)
        return path
    known = find_steps(path, _is_step)
    step = _latest(path) if step is None else step
    if step is None and len(known) > 1:
        raise source_error(
            "ambiguous-step",
            f"{path} has {len(known)} steps, and no `{LATEST}` says which one is meant",
            notes=[f"they are {', '.join(f'`{name}`' for name in known)}"],
            helps=[f"choose one with `--step {[*known][-1]}`"],
        )
    return path / choose_step(path, known, step)


def _latest(run: Path) -> str | None:
    """The step that `latest.txt` names; None where there is no such file."""
    source = LocalSource(run)
    text = source.note(LATEST) if source.has(LATEST) else None
    if text is None or (text.isascii() and text.isdigit()):
        return text
    raise source_error(
        "bad-tracker",
        f"{run / LATEST} does not name a step",
        notes=["nanotron writes the number of the last step into it, and nothing else"],
        helps=["choose a step with `--step`, or write its number into the file"],
    )
