"""Which step's folder a path means, of checkpoints and of DeepSpeed's universal form."""

from __future__ import annotations

import re
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.deepspeed.folder import is_step_folder
from reshard.formats.steps import refuse_another
from reshard.store.source import LocalSource

LATEST = "latest"
LATEST_UNIVERSAL = "latest_universal"
ZERO = "zero"
OPTIMIZER_STATE = f"{ZERO}/optimizer_state.pt"


def detect(path: Path) -> bool:
    """Whether a folder is a checkpoint of DeepSpeed, by the names in it; no file is opened."""
    if not path.is_dir() or is_universal(path):
        return False
    if is_step_folder(path) or _tags(path):
        return True
    source = LocalSource(path)
    return source.has(LATEST) and source.has("zero_to_fp32.py")


def is_universal(path: Path) -> bool:
    """Whether a folder is DeepSpeed's universal checkpoint, or holds only such."""
    return bool(_universal_mark(path))


def _universal_mark(path: Path) -> str:
    """What shows it, or nothing."""
    source = LocalSource(path)
    if source.has(OPTIMIZER_STATE):
        return OPTIMIZER_STATE
    if any(source.matching(f"{ZERO}/*/fp32.pt")):
        return "zero/*/fp32.pt"
    if source.has(LATEST_UNIVERSAL) and not source.has(LATEST):
        return LATEST_UNIVERSAL
    return ""


def _tags(path: Path) -> list[str]:
    """Names of the step folders inside a folder, lowest number first."""
    try:
        found = [name for name in LocalSource(path).folders() if is_step_folder(path / name)]
    except OSError:
        return []
    return sorted(found, key=lambda name: (_number(name) is None, _number(name) or 0, name))


def find_step(path: Path, step: str | None) -> Path:
    """The folder of one step.

    Args:  path: a step's folder, or the folder that holds several and `latest`.
           step: a folder's name or the number in it; None for what `latest` says.
    Raises: ReshardError[unknown-step | ambiguous-step | deepspeed-universal-source].
    """
    _refuse_universal(path)
    if is_step_folder(path):
        if step is None or not _means(path.name, step):
            refuse_another(path, step)
        return path
    found = _tags(path)
    listed = f"steps: {_listed(found)}"
    tracker = path / LATEST
    if step is not None:
        chosen = [name for name in found if name == step] or [
            name for name in found if _means(name, step)
        ]
        if len(chosen) != 1:
            raise source_error(
                "unknown-step",
                f"{path} has no step `{step}`",
                notes=[listed],
                helps=["give the name of one of these folders, or the number at its end"],
            )
        tag = chosen[0]
    elif tracker.exists() or tracker.is_symlink():
        tag = LocalSource(path).note(LATEST)
        if tag not in found:
            raise source_error(
                "unknown-step",
                f"`latest` in {path} names `{tag}`, which is not there",
                notes=[listed],
                helps=["choose one that is there with `--step`, or copy the missing folder"],
            )
    elif len(found) == 1:
        tag = found[0]
    else:
        raise source_error(
            "ambiguous-step",
            f"{path} holds {len(found)} steps and no file `latest`",
            notes=[listed],
            helps=["choose one with `--step`"],
        )
    _refuse_universal(path / tag)
    return path / tag


def find_universal(path: Path, step: str | None) -> Path:
    """The folder that holds `zero`: the one given, the one named, or that of `latest_universal`.

    Raises: ReshardError[unknown-step].
    """
    source = LocalSource(path)
    if source.has_folder(ZERO):
        found, asked = path, step in (None, path.name)
    else:
        tag = source.note(LATEST_UNIVERSAL) if step is None else step
        inside = tag not in ("", ".", "..") and "/" not in tag and "\0" not in tag
        found, asked = path / tag, inside and source.has_folder(f"{tag}/{ZERO}")
    if asked:
        return found
    named = [name for name in source.folders() if source.has_folder(f"{name}/{ZERO}")]
    raise source_error(
        "unknown-step",
        f"{path} has no universal checkpoint `{found.name if step is None else step}`",
        notes=[f"it has {', '.join(f'`{name}`' for name in named) or 'none'}"],
        helps=["give the name of one of these folders with `--step`"],
    )


def _refuse_universal(path: Path) -> None:
    """Refuse a universal folder among others; by itself it is read as what it is."""
    if mark := _universal_mark(path):
        raise source_error(
            "deepspeed-universal-source",
            f"{path} is a universal checkpoint of DeepSpeed among others",
            notes=[f"found {mark}"],
            helps=["give that folder itself, or convert the checkpoint that it was made from"],
        )


def _number(name: str) -> int | None:
    digits = re.search(r"([0-9]{1,18})$", name)
    return int(digits[1]) if digits else None


def _means(name: str, step: str) -> bool:
    number = step.isascii() and step.isdecimal() and len(step) < 20
    return name == step or (number and _number(name) == int(step))


def _listed(found: list[str]) -> str:
    names = [f"`{name}`" for name in found]
    if len(names) > 6:
        names = [*names[:3], f"{len(names) - 5} more", *names[-2:]]
    return ", ".join(names) or "none"
