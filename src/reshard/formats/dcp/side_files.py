"""What files that lie beside the tensors tell of the training: step, schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.formats.dcp.folders import Folder
from reshard.plan.text import show_count
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.kept import encode
from reshard.storage.regular_file import FileTooLargeError, read_regular, unreadable
from reshard.storage.torch_file import open_torch_file

MAX_NBYTES = 1 << 24
"""Bytes of a file that is looked into."""


@dataclass(slots=True)
class Told:
    """What they tell.

    Args:  iteration: of the trainer of OLMo-core or transformers.
           scheduler: of accelerate, as tagged JSON.
    """

    iteration: int | None = None
    scheduler: dict[str, object] | None = None


def read_side_files(folder: Folder) -> Told:
    """What the files of trainers in the folder of a step tell."""
    out = Told()
    for name in ("train/rank0.pt", "trainer_state.json"):
        path = folder.root / name
        if path.is_file():
            value = _torch(path) if name.endswith(".pt") else _json(path)
            step = value.get("global_step")
            out.iteration = step if isinstance(step, int) else out.iteration
    for name in ("scheduler.bin", "scheduler.pt"):
        if (folder.root / name).is_file():
            kept = encode(_torch(folder.root / name))
            out.scheduler = kept if isinstance(kept, dict) else None
    return out


def stale_files(folder: Folder, chunks: ChunkReader) -> tuple[Diagnostic, ...]:
    """A warning for data files that `.metadata` does not name."""
    found = []
    for part in folder.parts:
        for item in sorted(part.path.glob("*.distcp")):
            if f"{part.shown}{item.name}" not in chunks.files and item.stat().st_size:
                found.append(f"{part.shown}{item.name}")
    if not found:
        return ()
    return (
        Diagnostic(
            "stale-files",
            f"{show_count(len(found), 'file')} {'is' if len(found) == 1 else 'are'} "
            f"no part of the checkpoint, and {'is' if len(found) == 1 else 'are'} not read",
            "warning",
            notes=tuple(f"`{name}` is not named in `.metadata`" for name in found[:8]),
            helps=("an earlier save with more ranks leaves such files",),
        ),
    )


def _json(path: Path) -> Mapping[str, object]:
    try:
        value = json.loads(read_regular(path, MAX_NBYTES))
    except (OSError, FileTooLargeError) as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _torch(path: Path) -> dict[str, object]:
    """The dict in a file of `torch.save`; an empty one where it is something else."""
    root = open_torch_file(path).root
    return {str(key): value for key, value in root.items()} if isinstance(root, dict) else {}
