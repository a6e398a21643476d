"""The folders that together are one checkpoint, and the steps of a run.

Source: torchtitan components/checkpoint.py; OLMo-core train/checkpoint.py; accelerate
utils/fsdp_utils.py `save_fsdp_model` (1.15); ByteCheckpoint checkpointer/base_checkpointer.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.storage.dcp_metadata import metadata_files

Role = Literal["all", "model", "optimizer"]
Kind = Literal["dcp", "olmo-core", "accelerate", "bytecheckpoint"]

_NUMBER = re.compile(r"(?:.*(?:step|iter|iteration|epoch|checkpoint|ckpt|save)[-_.]?)?(\d+)", re.I)
"""Names of the folders of steps: a number, or one behind a word for what it counts."""


@dataclass(frozen=True, slots=True)
class Part:
    """One folder with `.metadata`.

    Args:  shown: goes before its file names, e.g. `optimizer_0/`.  role: what it holds.
    """

    path: Path
    shown: str
    role: Role


@dataclass(frozen=True, slots=True)
class Folder:
    """A checkpoint.

    Args:  root: that file names start from.  kind: who laid its folders out.
           oddities: what was found on the way to it.
    """

    root: Path
    kind: Kind
    parts: tuple[Part, ...]
    oddities: tuple[Diagnostic, ...] = ()


def find(path: Path) -> Folder | None:
    """The checkpoint that a folder is; None if it is none."""
    if metadata_files(path):
        return Folder(path, "dcp", (Part(path, "", "all"),))
    if metadata_files(path / "model_and_optim"):
        part = Part(path / "model_and_optim", "model_and_optim/", "all")
        return Folder(path, "olmo-core", (part,))
    models, optimizers = _parts(path, "pytorch_model_fsdp_*"), _parts(path, "optimizer_*")
    if models or optimizers:
        return Folder(path, "accelerate", (*models, *optimizers))
    models, optimizers = _parts(path, "model", "model"), _parts(path, "optimizer", "optimizer")
    if models or optimizers:
        return Folder(path, "bytecheckpoint", (*models, *optimizers))
    return None


def _parts(path: Path, pattern: str, role: Role = "all") -> tuple[Part, ...]:
    found = sorted(item for item in path.glob(pattern) if metadata_files(item))
    return tuple(Part(item, f"{item.name}/", role) for item in found)


def is_incomplete(path: Path) -> bool:
    """Whether a folder holds what a save leaves behind that did not come to its end."""
    return (path / ".metadata.tmp").exists() or next(path.glob("__*.distcp"), None) is not None


def steps(path: Path) -> dict[str, int]:
    """The folders of the steps of a run with their numbers, in ascending order."""
    found = {}
    for item in path.iterdir():
        number = _NUMBER.fullmatch(item.name)
        ours = item.is_dir() and not (item / "metadata.json").exists()
        if number and ours and find(item) is not None:
            found[item.name] = int(number[1])
    return dict(sorted(found.items(), key=lambda pair: (pair[1], pair[0])))


def find_step(path: Path, step: str | None) -> Folder:
    """The checkpoint of one step.

    Args:  path: of the step, or of the run.  step: a name, or the number in it; the last one that
           is whole by default, as torchtitan and OLMo-core resume from it.
    Raises: ReshardError[incomplete-dcp | unknown-step | several-models].
    """
    found = find(path)
    if found is None and is_incomplete(path):
        raise incomplete(path)
    if found is not None:
        number = _NUMBER.fullmatch(path.name)
        if step is not None and step not in (path.name, number[1] if number else ""):
            raise source_error(
                "unknown-step",
                f"{path} is the folder of `{path.name}`, not of step `{step}`",
                helps=["give the folder above it, or leave `--step` out"],
            )
        return _checked(found)
    known = steps(path)
    chosen = [name for name, number in known.items() if step in (None, name) or step == str(number)]
    if not chosen:
        if step is not None and is_incomplete(path / step):
            raise incomplete(path / step)
        raise source_error(
            "unknown-step",
            f"{path} has no step `{step}`",
            notes=[f"steps: {', '.join(f'`{name}`' for name in known) or 'none'}"],
            helps=["give the name of one of these folders, or the number at its end"],
        )
    newest = find(path / chosen[-1])
    assert newest is not None
    skipped = _skipped(path, known[chosen[-1]]) if step is None else ()
    checked = _checked(newest)
    return Folder(checked.root, checked.kind, checked.parts, (*checked.oddities, *skipped))


def _skipped(path: Path, number: int) -> tuple[Diagnostic, ...]:
    """Later steps that are not whole."""
    out = []
    for item in sorted(path.iterdir()):
        found = _NUMBER.fullmatch(item.name)
        if found and int(found[1]) > number and item.is_dir() and is_incomplete(item):
            out.append(
                Diagnostic(
                    "incomplete-dcp",
                    f"{item} was not written to the end, so step {number} is taken",
                    "warning",
                    notes=("it has no `.metadata`, which is written last",),
                )
            )
    return tuple(out)


def _checked(found: Folder) -> Folder:
    """Refuse several models, and parts that are not whole; warn of OLMo-core's missing mark."""
    if found.kind != "dcp":
        for item in sorted(found.root.iterdir()):
            if item.is_dir() and is_incomplete(item) and not metadata_files(item):
                raise incomplete(item)
    models = [part for part in found.parts if part.path.name.startswith("pytorch_model_fsdp_")]
    if found.kind == "accelerate" and max(len(models), len(found.parts) - len(models)) > 1:
        listed = ", ".join(f"`{part.path.name}`" for part in found.parts)
        raise source_error(
            "several-models",
            f"{found.root} holds several models or optimizers",
            notes=[f"folders: {listed}"],
            helps=["give one of these folders"],
        )
    if found.kind == "olmo-core" and not (found.root / ".metadata.json").is_file():
        warning = Diagnostic(
            "incomplete-dcp",
            f"{found.root} has no `.metadata.json`, which OLMo-core writes last",
            "warning",
            notes=("the folder `model_and_optim` is whole; the state of the trainer may not be",),
        )
        return Folder(found.root, found.kind, found.parts, (warning,))
    return found


def incomplete(path: Path) -> ReshardError:
    """The error for a folder without `.metadata`."""
    tmp = (path / ".metadata.tmp").exists()
    return source_error(
        "incomplete-dcp",
        f"{path} was not written to the end",
        notes=[
            "there is `.metadata.tmp`, but no `.metadata`, which is written last"
            if tmp
            else "there are `.distcp` files, but no `.metadata`, which is written last"
        ],
        helps=["go back to an earlier checkpoint"],
    )
