"""The folders that together are one checkpoint, and the steps of a run.

Source: torchtitan components/checkpoint.py; OLMo-core train/checkpoint.py; accelerate
utils/fsdp_utils.py `save_fsdp_model` (1.15); ByteCheckpoint checkpointer/base_checkpointer.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from reshard.errors import Diagnostic, ReshardError, source_error, warning
from reshard.formats.steps import (
    MODELS,
    OPTIMIZERS,
    choose_step,
    find_steps,
    refuse_another,
    several_models,
    step_number,
)
from reshard.storage.dcp_metadata import metadata_files
from reshard.store.source import LocalSource

Role = Literal["all", "model", "optimizer"]
Kind = Literal["dcp", "olmo-core", "accelerate", "parts"]

_FOLDERS = ("model_and_optim", "pytorch_model_fsdp_*", "optimizer_*", *MODELS, *OPTIMIZERS)
"""What the folders are called that are one checkpoint together."""

_WEIGHTS = (
    *("model*.safetensors", "model.safetensors.index.json", "shard-*.safetensors"),
    *("pytorch_model*.bin", "adapter_model.safetensors", "adapter_model.bin"),
)
"""Files of a folder of weights alone, as Hugging Face's libraries and torch's writer for them
lay it out."""


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
           weights: the name of the folder of the model's weights, where that is one of Hugging
                    Face's form.
    """

    root: Path
    kind: Kind
    parts: tuple[Part, ...]
    oddities: tuple[Diagnostic, ...] = ()
    weights: str = ""


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
    return _find_parts(path)


def _find_parts(path: Path) -> Folder | None:
    """A step with folders of its own for its model and its optimizer."""
    optimizers = [part for name in OPTIMIZERS for part in _parts(path, name, "optimizer")]
    models = [part for name in MODELS for part in _parts(path, name, "model")]
    if not optimizers:
        models = [part for part in models if part.path.name == "model"]
    weights = next((name for name in MODELS if optimizers and has_weights(path / name)), "")
    if not models and not optimizers:
        return None
    return Folder(path, "parts", (*models, *optimizers), weights="" if models else weights)


def has_weights(path: Path) -> bool:
    """Whether a folder holds weights in files of Hugging Face's libraries."""
    return any(any(LocalSource(path).matching(pattern)) for pattern in _WEIGHTS)


def _parts(path: Path, pattern: str, role: Role = "all") -> tuple[Part, ...]:
    names = LocalSource(path).matching(pattern, folders=True)
    return tuple(Part(path / name, f"{name}/", role) for name in names if _is_one(path / name))


def _is_one(path: Path) -> bool:
    """Whether a folder has `.metadata`, and is not Megatron's, which has `metadata.json` too."""
    return bool(metadata_files(path)) and not LocalSource(path).has("metadata.json")


def unfinished(path: Path) -> Path | None:
    """The folder of a checkpoint, or the checkpoint itself, whose save did not come to its end."""
    source = LocalSource(path)
    inner = (path / x for pattern in _FOLDERS for x in source.matching(pattern, folders=True))
    return next((item for item in (path, *inner) if _is_unfinished(item)), None)


def _is_unfinished(path: Path) -> bool:
    if metadata_files(path):
        return False
    source = LocalSource(path)
    return source.has(".metadata.tmp") or any(source.matching("__*.distcp"))


def steps(path: Path) -> dict[str, int]:
    """The folders of the steps of a run with their numbers, in ascending order."""
    return find_steps(
        path,
        lambda item: (
            not LocalSource(item).has("metadata.json")
            and find(item) is not None
            and unfinished(item) is None
        ),
    )


def find_step(path: Path, step: str | None) -> Folder:
    """The checkpoint of one step.

    Args:  path: of the step, or of the run.  step: a name, or the number in it; the last one that
           is whole by default, as torchtitan and OLMo-core resume from it.
    Raises: ReshardError[incomplete-dcp | unknown-step | several-models].
    """
    begun = unfinished(path)
    if begun is not None:
        raise incomplete(begun)
    checkpoint = find(path)
    if checkpoint is not None:
        refuse_another(path, step)
        return _checked(checkpoint)
    begun = unfinished(path / step) if step is not None else None
    if begun is not None:
        raise incomplete(begun)
    known = steps(path)
    chosen = choose_step(path, known, step)
    newest = find(path / chosen)
    assert newest is not None
    skipped = _skipped(path, known[chosen]) if step is None else ()
    checked = _checked(newest)
    return replace(checked, oddities=(*checked.oddities, *skipped))


def _skipped(path: Path, number: int) -> tuple[Diagnostic, ...]:
    """Later steps that are not whole."""
    out = []
    for item in (path / name for name in LocalSource(path).folders()):
        later = step_number(item.name)
        if later is not None and later > number and unfinished(item) is not None:
            out.append(
                warning(
                    "incomplete-dcp",
                    f"{item} was not written to the end, so step {number} is taken",
                    "it has no `.metadata`, which is written last",
                )
            )
    return tuple(out)


def _checked(folder: Folder) -> Folder:
    """Refuse several models; warn of OLMo-core's missing mark."""
    models = [part for part in folder.parts if part.path.name.startswith("pytorch_model_fsdp_")]
    is_more = max(len(models), len(folder.parts) - len(models)) > 1
    if folder.kind == "parts":
        roles = Counter(part.role for part in folder.parts)
        is_more = max(roles.values()) > 1
    if folder.kind in ("accelerate", "parts") and is_more:
        raise several_models(folder.root, [part.path.name for part in folder.parts])
    if folder.kind == "olmo-core" and not LocalSource(folder.root).has(".metadata.json"):
        unmarked = warning(
            "incomplete-dcp",
            f"{folder.root} has no `.metadata.json`, which OLMo-core writes last",
            "the folder `model_and_optim` is whole; the state of the trainer may not be",
        )
        return replace(folder, oddities=(unmarked,))
    return folder


def incomplete(path: Path) -> ReshardError:
    """The error for a folder without `.metadata`."""
    tmp = LocalSource(path).has(".metadata.tmp")
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
