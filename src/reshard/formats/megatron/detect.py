"""Whether a folder is a Megatron checkpoint, and which of its iterations is meant.

Source: Megatron-LM, megatron/training/checkpointing.py `read_metadata`, `_get_checkpoint_format`.
"""

from __future__ import annotations

import re
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.steps import TRACKER, is_tracked_by_another
from reshard.store.regular_file import read_note

WEIGHTS = "weights"
"""The folder of the tensors in a checkpoint of NeMo."""
_ITERATION = re.compile(r"iter_\d{7,}|release")


def detect(path: Path) -> bool:
    """Whether a folder has the tracker file, rank folders, or a `torch_dist` folder's files."""
    if not path.is_dir():
        return False
    is_one = is_legacy(path) or is_dist(path) or is_plain(path)
    return _is_tracked(path) or is_one or is_dist(path / WEIGHTS)


def _is_tracked(path: Path) -> bool:
    """Whether a folder has the tracker file of its own; Megatron-DeepSpeed writes one, too, beside
    the `latest` file of DeepSpeed and the folders that this one names. So do trainers whose steps
    are of other formats.
    """
    if not (path / TRACKER).exists() or is_tracked_by_another(path):
        return False
    return not (path / "latest").exists() or any(path.glob("iter_*"))


def is_legacy(folder: Path) -> bool:
    """Whether a folder holds `mp_rank_*/model_optim_rng.pt`."""
    return any(folder.glob("mp_rank_*/model_*rng.pt"))


def is_dist(folder: Path) -> bool:
    """Whether a folder is a `torch_dist` (or `zarr`) checkpoint; since core 0.17 without a
    `common.pt`.
    """
    beside = (folder / "common.pt").exists() or (folder / ".metadata").exists()
    return (folder / "metadata.json").exists() and beside


def is_plain(folder: Path) -> bool:
    """Whether an iteration's folder is a plain distributed checkpoint: of FSDP."""
    if not (folder / ".metadata").exists() or (folder / "metadata.json").exists():
        return False
    return (folder.parent / TRACKER).exists() and _ITERATION.fullmatch(folder.name) is not None


def find_folder(path: Path, step: str | None) -> Path:
    """The folder of one iteration.

    Args:  path: it, or the folder with the tracker file.  step: its number, or its folder's name.
    Raises: ReshardError[step-missing | bad-tracker | incomplete-megatron | mixed-source].
    """
    if step is None and is_dist(path / WEIGHTS) and not (path / TRACKER).exists():
        return path / WEIGHTS
    if step is None and (is_legacy(path) or is_dist(path) or is_plain(path)):
        return _of_one_form(path)
    wanted = step
    tracker = path / TRACKER
    if wanted is None:
        if not tracker.exists():
            raise source_error(
                "incomplete-megatron",
                f"{path} is not a whole Megatron checkpoint",
                notes=["it has neither rank folders nor a `metadata.json`"],
                helps=["`metadata.json` is written last; without it the save did not end"],
            )
        wanted = read_note(tracker)
        if wanted != "release" and not (wanted.isdecimal() and wanted.isascii()):
            raise source_error(
                "bad-tracker",
                f"{tracker} says `{wanted[:40]}`, which is no iteration",
                helps=["write the number of an iteration into it, or choose one with `--step`"],
            )
    folder = path / (f"iter_{int(wanted):07d}" if wanted.isdecimal() else wanted)
    if step is not None and not tracker.exists() and path.name == folder.name:
        folder = path
    if not folder.is_dir():
        there = sorted(p.name for p in path.glob("iter_*") if p.is_dir())
        raise source_error(
            "step-missing",
            f"iteration `{wanted}` is not in {path}",
            notes=[f"there are: {', '.join(there[-5:]) or 'none'}"],
            helps=["choose one of them with `--step`"],
        )
    if not is_legacy(folder) and not is_dist(folder) and not is_plain(folder):
        raise source_error(
            "incomplete-megatron",
            f"{folder} is not a whole Megatron checkpoint",
            notes=["it has neither rank folders nor a `metadata.json`"],
            helps=["`metadata.json` is written last; without it the save did not end"],
        )
    return _of_one_form(folder)


def _of_one_form(folder: Path) -> Path:
    """The folder, unless two saves left their files in it.

    Raises: ReshardError[mixed-source].
    """
    if is_legacy(folder) and (is_dist(folder) or (folder / ".metadata").exists()):
        dist = next(name for name in ("metadata.json", ".metadata") if (folder / name).exists())
        raise source_error(
            "mixed-source",
            f"{folder} holds two checkpoints: files of ranks, and a distributed one",
            notes=[
                f"it has `mp_rank_*` folders and `{dist}`",
                "Megatron would load the distributed one, whichever is the newer",
            ],
            helps=["move one of them into a folder of its own"],
        )
    return folder
