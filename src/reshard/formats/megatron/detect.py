"""Whether a folder is a Megatron checkpoint, and which of its iterations is meant.

Source: Megatron-LM, megatron/training/checkpointing.py `read_metadata`, `_get_checkpoint_format`.
"""

from __future__ import annotations

import re
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.formats.steps import TRACKER, is_tracked_by_another
from reshard.store.source import LocalSource

WEIGHTS = "weights"
"""The folder of the tensors in a checkpoint of NeMo."""
_ITERATION = re.compile(r"iter_\d{7,}|release")


def detect(path: Path) -> bool:
    """Whether a folder has the tracker file, rank folders, or a `torch_dist` folder's files."""
    return path.is_dir() and (_is_tracked(path) or _has_form(path) or is_dist(path / WEIGHTS))


def _is_tracked(path: Path) -> bool:
    """Whether a folder has the tracker file of its own.

    Megatron-DeepSpeed writes one, too, next to the `latest` file of DeepSpeed and the folders that
    this one names. So do trainers whose steps are of other formats.
    """
    source = LocalSource(path)
    if not source.has(TRACKER) or is_tracked_by_another(path):
        return False
    return not source.has("latest") or any(source.matching("iter_*", folders=True))


def _has_form(folder: Path) -> bool:
    """Whether a folder is that of one iteration, in any form."""
    return is_legacy(folder) or is_dist(folder) or is_plain(folder)


def is_legacy(folder: Path) -> bool:
    """Whether a folder holds `mp_rank_*/model_optim_rng.pt`."""
    return any(LocalSource(folder).matching("mp_rank_*/model_*rng.pt"))


def is_dist(folder: Path) -> bool:
    """Whether a folder is a `torch_dist` (or `zarr`) checkpoint; since core 0.17 without a
    `common.pt`.
    """
    source = LocalSource(folder)
    return source.has("metadata.json") and (source.has("common.pt") or source.has(".metadata"))


def is_plain(folder: Path) -> bool:
    """Whether an iteration's folder is a plain distributed checkpoint: of FSDP."""
    source = LocalSource(folder)
    if not source.has(".metadata") or source.has("metadata.json"):
        return False
    return LocalSource(folder.parent).has(TRACKER) and _ITERATION.fullmatch(folder.name) is not None


def find_folder(path: Path, step: str | None) -> Path:
    """The folder of one iteration.

    Args:  path: it, or the folder with the tracker file.  step: its number, or its folder's name.
    Raises: ReshardError[step-missing | bad-tracker | incomplete-megatron | mixed-source].
    """
    source = LocalSource(path)
    has_tracker = source.has(TRACKER)
    if step is None and is_dist(path / WEIGHTS) and not has_tracker:
        return path / WEIGHTS
    if step is None and _has_form(path):
        return _of_one_form(path)
    if step is None and not has_tracker:
        raise _incomplete(path)
    name = source.note(TRACKER) if step is None else step
    is_number = name.isdecimal() and name.isascii()
    if step is None and name != "release" and not is_number:
        raise source_error(
            "bad-tracker",
            f"{path / TRACKER} contains `{name[:40]}`, which is not an iteration",
            helps=["write the number of an iteration into it, or choose one with `--step`"],
        )
    folder = path / (f"iter_{int(name):07d}" if name.isdecimal() else name)
    if step is not None and not has_tracker and path.name == folder.name:
        folder = path
    if not folder.is_dir():
        iterations = [*source.matching("iter_*", folders=True)]
        raise source_error(
            "step-missing",
            f"iteration `{name}` is not in {path}",
            notes=[f"there are: {', '.join(iterations[-5:]) or 'none'}"],
            helps=["choose one of them with `--step`"],
        )
    if not _has_form(folder):
        raise _incomplete(folder)
    return _of_one_form(folder)


def _incomplete(folder: Path) -> ReshardError:
    return source_error(
        "incomplete-megatron",
        f"{folder} is an incomplete Megatron checkpoint",
        notes=["it has neither rank folders nor `metadata.json`"],
        helps=["`metadata.json` is written last: without it, the save did not finish"],
    )


def _of_one_form(folder: Path) -> Path:
    """The folder, unless two saves left their files in it.

    Raises: ReshardError[mixed-source].
    """
    source = LocalSource(folder)
    if is_legacy(folder) and (is_dist(folder) or source.has(".metadata")):
        dist = "metadata.json" if source.has("metadata.json") else ".metadata"
        raise source_error(
            "mixed-source",
            f"{folder} holds two checkpoints: files of ranks, and a distributed one",
            notes=[
                f"it has `mp_rank_*` folders and `{dist}`",
                "Megatron loads the distributed one, even if it is the older one",
            ],
            helps=["move one of them into a folder of its own"],
        )
    return folder
