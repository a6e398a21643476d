"""What files that lie beside the tensors tell of the training: step, schedule."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from reshard.errors import Diagnostic, warning
from reshard.formats.dcp.folders import Folder, Part
from reshard.plan.text import show_count
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.kept import encode
from reshard.storage.torch_file import open_torch_file
from reshard.store.source import LocalSource

LIGHTNING = "meta.pt"
_LIGHTNING_MARKS = ("pytorch-lightning_version", "lightning_version")

_DATA = ".distcp"
_GRAIN = 2_000_000_000
"""Nanoseconds by which the times of files that were written one after the other may be wrong."""

MAX_NBYTES = 1 << 24
"""Bytes of a file that is looked into."""


@dataclass(slots=True)
class SideFiles:
    """What they tell.

    Args:  iteration: of the trainer of OLMo-core, transformers, or Lightning; iteration_at: the
                      file that states it.
           scheduler: of accelerate or Lightning, as tagged JSON.
           is_lightning: whether what was saved is a LightningModule.
    """

    iteration: int | None = None
    iteration_at: str = ""
    scheduler: dict[str, object] | None = None
    is_lightning: bool = False


def read_side_files(folder: Folder) -> SideFiles:
    """What the files of trainers in the folder of a step tell.

    Source: lightning/pytorch/strategies/fsdp.py `save_checkpoint` (2.6).
    """
    out = SideFiles()
    source = LocalSource(folder.root)
    for name in ("train/rank0.pt", "trainer_state.json", LIGHTNING):
        root = _dict_in(source, name)
        step, schedules = root.get("global_step"), root.get("lr_schedulers")
        if isinstance(step, int) and not isinstance(step, bool):
            out.iteration, out.iteration_at = step, f"`{name}`"
        if name == LIGHTNING:
            out.is_lightning = any(key in root for key in _LIGHTNING_MARKS)
            if isinstance(schedules, list) and len(schedules) == 1:
                out.scheduler = _state_dict(schedules[0])
    for name in ("scheduler.bin", "scheduler.pt"):
        if out.scheduler is None and source.has(name):
            out.scheduler = _state_dict(_dict_in(source, name))
    return out


def _state_dict(value: object) -> dict[str, object] | None:
    kept = encode(value)
    return kept if isinstance(kept, dict) else None


def _dict_in(source: LocalSource, name: str) -> Mapping[str, object]:
    """The dict in a file of JSON or of `torch.save`; an empty one where there is something else."""
    value: object = None
    if source.has(name) and name.endswith(".json"):
        try:
            value = json.loads(source.text(name, MAX_NBYTES))
        except (ValueError, RecursionError):
            value = None
    elif source.has(name):
        value = open_torch_file(source.path(name)).root
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def stale_files(folder: Folder, chunks: ChunkReader) -> tuple[Diagnostic, ...]:
    """A warning for data files that `.metadata` does not name."""
    stale = []
    for part in folder.parts:
        source = LocalSource(part.path)
        for name in source.matching(f"*{_DATA}"):
            if f"{part.shown}{name}" not in chunks.files and source.stat(name).nbytes:
                stale.append(f"{part.shown}{name}")
    if not stale:
        return ()
    verb = "is" if len(stale) == 1 else "are"
    return (
        warning(
            "stale-files",
            f"{show_count(len(stale), 'file')} {verb} no part of the checkpoint, "
            f"and {verb} not read",
            *tuple(f"`{name}` is not named in `.metadata`" for name in stale[:8]),
            helps=("an earlier save with more ranks leaves such files",),
        ),
    )


def newer_files(folder: Folder, chunks: ChunkReader) -> tuple[Diagnostic, ...]:
    """Warnings for data files that were changed after the `.metadata` that lists them.

    torch writes `.metadata` last. Where a save ends halfway over an older one of equal shapes, the
    times of the files are the only sign of it; a copy that does not keep times looks the same.
    ByteCheckpoint does not wait for the data.
    """
    return tuple(item for part in folder.parts for item in _newer_files(part, chunks))


def _newer_files(part: Part, chunks: ChunkReader) -> Iterator[Diagnostic]:
    files = [file for name, file in chunks.files.items() if name.startswith(part.shown)]
    lists = [file for file in files if file.path.endswith(".metadata")]
    data = [file for file in files if file.path.endswith(_DATA) and file.path not in chunks.raw]
    written = max((file.mtime_ns for file in lists), default=0)
    newer = [file for file in data if file.mtime_ns > written + _GRAIN]
    if not lists or not newer:
        return
    last = max(newer, key=lambda file: file.mtime_ns)
    word, verb = ("file", "was") if len(newer) == 1 else ("files", "were")
    yield warning(
        "newer-data",
        f"{len(newer)} of {show_count(len(data), 'data file')} {verb} changed after "
        f"`{lists[0].path}`, which is written last",
        f"`{lists[0].path}` is of {_time(written)}",
        f"`{last.path}` is of {_time(last.mtime_ns)}",
        f"if a later save ended halfway, the {word} may hold tensors of another step",
        "a copy that does not keep times makes such a difference, too",
        helps=(
            "if the folder was copied, compare it with the original, or copy it with its times",
        ),
    )


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
