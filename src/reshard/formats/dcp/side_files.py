"""Files that lie beside the tensors: states of trainers, schedules, configurations, old data."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.formats.dcp.folders import Folder
from reshard.plan.catalog import Left
from reshard.plan.text import show_count
from reshard.storage.dcp_chunks import ChunkReader, small_tensor
from reshard.storage.objects import to_json
from reshard.storage.regular_file import FileTooLargeError, read_regular, unreadable
from reshard.storage.torch_file import open_torch_file

MAX_NBYTES = 1 << 24
"""Bytes of a side file that is carried along."""
MAX_ALL_NBYTES = 1 << 26
"""Bytes of all of them."""


@dataclass(slots=True)
class SideFiles:
    """What they are.

    Args:  kept: by name, their bytes as tagged JSON.  config: the model's, where there is one.
           iteration: of the trainer of OLMo-core or transformers.
           scheduler: of accelerate, as tagged JSON.
    """

    kept: dict[str, object] = field(default_factory=dict)
    config: Mapping[str, object] | None = None
    iteration: int | None = None
    scheduler: dict[str, object] | None = None
    left: list[Left] = field(default_factory=list)


def read_side_files(folder: Folder, chunks: ChunkReader) -> SideFiles:
    """Everything beside the data files; what is too large is named in a warning."""
    out = SideFiles()
    room = MAX_ALL_NBYTES
    for name in _names(folder):
        path = folder.root / name
        nbytes = _nbytes(path)
        if nbytes > min(MAX_NBYTES, room):
            out.left.append(Left(name, "", f"it has {nbytes} bytes: it is too large to go along"))
            continue
        room -= nbytes
        chunks.know(name)
        data = _data(path)
        out.kept[name] = {"$bytes": base64.b64encode(data).decode("ascii")}
        if name == "config.json":
            out.config = _json(data)
        elif name == "trainer_state.json":
            step = (_json(data) or {}).get("global_step")
            out.iteration = step if isinstance(step, int) else None
        elif name == "train/rank0.pt":
            step = _torch(path).get("global_step")
            out.iteration = step if isinstance(step, int) else None
        elif name in ("scheduler.bin", "scheduler.pt"):
            kept = to_json(_torch(path), tensor=small_tensor)
            out.scheduler = kept if isinstance(kept, dict) else None
    return out


def config_of(files: SideFiles) -> Mapping[str, object] | None:
    """The configuration of the model, where a file tells it."""
    return files.config


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


def _names(folder: Folder) -> Iterator[str]:
    """Names of side files, relative to the root."""
    apart = {part.path for part in folder.parts if part.path != folder.root}
    for parent, folders, files in os.walk(folder.root):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if here / name not in apart)
        if folder.kind == "dcp":
            folders[:] = []
        for name in sorted(files):
            ours = name.startswith(".reshard-")
            if not ours and not name.endswith((".distcp", ".metadata", ".metadata.tmp")):
                yield (here / name).relative_to(folder.root).as_posix()


def _nbytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from None


def _data(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_NBYTES)
    except (OSError, FileTooLargeError) as error:
        raise unreadable(path, error) from None


def _json(data: bytes) -> Mapping[str, object] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _torch(path: Path) -> dict[str, object]:
    """The dict in a file of `torch.save`; an empty one where it is something else."""
    root = open_torch_file(path).root
    return {str(key): value for key, value in root.items()} if isinstance(root, dict) else {}
