"""What files that lie beside the tensors tell of the training: step, schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from reshard.errors import Diagnostic
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
class Told:
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

    def state(self, step: object, file: str) -> None:
        """Note the number of the step, if it is one."""
        if isinstance(step, int) and not isinstance(step, bool):
            self.iteration, self.iteration_at = step, f"`{file}`"


def read_side_files(folder: Folder) -> Told:
    """What the files of trainers in the folder of a step tell."""
    out = Told()
    source = LocalSource(folder.root)
    for name in ("train/rank0.pt", "trainer_state.json"):
        if source.has(name):
            path = source.path(name)
            value = _torch(path) if name.endswith(".pt") else _json(source, name)
            out.state(value.get("global_step"), name)
    for name in ("scheduler.bin", "scheduler.pt"):
        if source.has(name):
            out.scheduler = _state_dict(_torch(source.path(name)))
    if source.has(LIGHTNING):
        _read_lightning(_torch(source.path(LIGHTNING)), out)
    return out


def _read_lightning(root: Mapping[str, object], out: Told) -> None:
    """What Lightning keeps besides the tensors.

    Source: lightning/pytorch/strategies/fsdp.py `save_checkpoint` (2.6).
    """
    step, schedules = root.get("global_step"), root.get("lr_schedulers")
    out.is_lightning = any(key in root for key in _LIGHTNING_MARKS)
    out.state(step, LIGHTNING)
    if isinstance(schedules, list) and len(schedules) == 1:
        out.scheduler = _state_dict(schedules[0])


def _state_dict(value: object) -> dict[str, object] | None:
    kept = encode(value)
    return kept if isinstance(kept, dict) else None


def stale_files(folder: Folder, chunks: ChunkReader) -> tuple[Diagnostic, ...]:
    """A warning for data files that `.metadata` does not name."""
    found = []
    for part in folder.parts:
        source = LocalSource(part.path)
        for name in source.matching("*.distcp"):
            if f"{part.shown}{name}" not in chunks.files and source.stat(name).nbytes:
                found.append(f"{part.shown}{name}")
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


def newer_files(folder: Folder, chunks: ChunkReader) -> tuple[Diagnostic, ...]:
    """Warnings for data files that were changed after the `.metadata` that lists them.

    torch writes `.metadata` last. Where a save ends halfway over an older one of equal shapes, the
    times of the files are the only sign of it; a copy that does not keep times looks the same.
    ByteCheckpoint does not wait for the data.
    """
    return tuple(found for part in folder.parts for found in _newer_files(part, chunks))


def _newer_files(part: Part, chunks: ChunkReader) -> list[Diagnostic]:
    of_part = [file for name, file in chunks.files.items() if name.startswith(part.shown)]
    lists = [file for file in of_part if file.path.endswith(".metadata")]
    data = [file for file in of_part if file.path.endswith(_DATA) and file.path not in chunks.raw]
    written = max((file.mtime_ns for file in lists), default=0)
    newer = sorted(
        (file for file in data if file.mtime_ns > written + _GRAIN), key=lambda file: file.mtime_ns
    )
    if not lists or not newer:
        return []
    last = newer[-1]
    word, verb = ("file", "was") if len(newer) == 1 else ("files", "were")
    return [
        Diagnostic(
            "newer-data",
            f"{len(newer)} of {show_count(len(data), 'data file')} {verb} changed after "
            f"`{lists[0].path}`, which is written last",
            "warning",
            notes=(
                f"`{lists[0].path}` is of {_time(written)}",
                f"`{last.path}` is of {_time(last.mtime_ns)}",
                f"if a later save ended halfway, the {word} may hold tensors of another step",
                "a copy that does not keep times makes such a difference, too",
            ),
            helps=(
                "if the folder was copied, compare it with the original, or copy it with its times",
            ),
        )
    ]


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _json(source: LocalSource, name: str) -> Mapping[str, object]:
    try:
        value = json.loads(source.text(name, MAX_NBYTES))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _torch(path: Path) -> dict[str, object]:
    """The dict in a file of `torch.save`; an empty one where it is something else."""
    root = open_torch_file(path).root
    return {str(key): value for key, value in root.items()} if isinstance(root, dict) else {}
