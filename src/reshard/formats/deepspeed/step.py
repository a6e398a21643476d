"""Which step's folder a path means."""

from __future__ import annotations

import re
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.folder import is_step_folder
from reshard.storage.regular_file import read_note

LATEST = "latest"
LATEST_UNIVERSAL = "latest_universal"


def tags(path: Path) -> list[str]:
    """Names of the step folders inside a folder, lowest number first."""
    try:
        found = [item.name for item in path.iterdir() if item.is_dir() and is_step_folder(item)]
    except OSError:
        return []
    return sorted(found, key=lambda name: (_number(name) is None, _number(name) or 0, name))


def find_step(path: Path, step: str | None) -> Path:
    """The folder of one step.

    Args:  path: a step's folder, or the folder that holds several and `latest`.
           step: a folder's name or the number in it; None for what `latest` says.
    Raises: ReshardError[unknown-step | ambiguous-step | deepspeed-universal-source].
    """
    refuse_universal(path)
    if is_step_folder(path):
        if step is not None and not _means(path.name, step):
            raise source_error(
                "unknown-step",
                f"{path} is the folder of `{path.name}`, not of step `{step}`",
                helps=["give the folder above it, or leave `--step` out"],
            )
        return path
    found = tags(path)
    if step is not None:
        chosen = [name for name in found if name == step] or [
            name for name in found if _means(name, step)
        ]
        if len(chosen) != 1:
            raise _unknown(path, step, found)
        return _checked(path / chosen[0])
    tracker = path / LATEST
    if tracker.exists() or tracker.is_symlink():
        tag = read_note(tracker)
        if tag not in found:
            raise _dangling(path, tag, found)
        return _checked(path / tag)
    if len(found) == 1:
        return _checked(path / found[0])
    raise source_error(
        "ambiguous-step",
        f"{path} holds {len(found)} steps and no file `latest`",
        notes=[f"steps: {_listed(found)}"],
        helps=["choose one with `--step`"],
    )


def refuse_universal(path: Path) -> None:
    """Refuse a universal folder among others; by itself it is read as what it is."""
    if is_universal(path):
        raise source_error(
            "deepspeed-universal-source",
            f"{path} is a universal checkpoint of DeepSpeed among others",
            notes=[f"found {_universal_mark(path)}"],
            helps=["give that folder itself, or convert the checkpoint that it was made from"],
        )


def is_universal(path: Path) -> bool:
    """Whether a folder is DeepSpeed's universal checkpoint, or holds only such."""
    return bool(_universal_mark(path))


def _universal_mark(path: Path) -> str:
    """What shows it, or nothing."""
    zero = path / "zero"
    if (zero / "optimizer_state.pt").is_file():
        return "zero/optimizer_state.pt"
    if zero.is_dir() and next(zero.glob("*/fp32.pt"), None) is not None:
        return "zero/*/fp32.pt"
    if (path / LATEST_UNIVERSAL).is_file() and not (path / LATEST).is_file():
        return LATEST_UNIVERSAL
    return ""


def _checked(path: Path) -> Path:
    refuse_universal(path)
    return path


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


def _unknown(path: Path, step: str, found: list[str]) -> ReshardError:
    return source_error(
        "unknown-step",
        f"{path} has no step `{step}`",
        notes=[f"steps: {_listed(found)}"],
        helps=["give the name of one of these folders, or the number at its end"],
    )


def _dangling(path: Path, tag: str, found: list[str]) -> ReshardError:
    return source_error(
        "unknown-step",
        f"`latest` in {path} names `{tag}`, which is not there",
        notes=[f"steps: {_listed(found)}"],
        helps=["choose one that is there with `--step`, or copy the missing folder"],
    )
