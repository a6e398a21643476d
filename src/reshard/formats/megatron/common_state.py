"""What all ranks of a distributed checkpoint have in common: arguments, iteration, param groups.

It is in a file of its own, `common.pt`; since core 0.17 it is one of the checkpoint's pickled
objects.
Source: megatron/core/dist_checkpointing/serialization.py, strategies/common.py (core 0.5 to 0.19).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments, arguments_in, no_arguments
from reshard.formats.megatron.described import arguments_beside, step_beside
from reshard.plan.catalog import Left
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import read_metadata
from reshard.storage.kept import encode
from reshard.storage.torch_file import open_torch_file

COMMON = "common_state/"
"""How the key of the object begins."""

FILE = "common.pt"


@dataclass(frozen=True, slots=True)
class CommonState:
    """The common state.

    Args:  root: its entries.  file: where it is, relative to the folder.
           left: a `common.pt` that is not used.
    """

    root: Mapping[object, object]
    args: Arguments
    file: str
    left: tuple[Left, ...]


def common_state(folder: Path, chunks: ChunkReader, backend: str) -> CommonState:
    """The common state of a folder with `metadata.json`: the object, which was saved with the
    tensors, before the file.

    Raises: ReshardError[incomplete-megatron | no-arguments], and what `read_metadata`,
            `ChunkReader` and `open_torch_file` raise.
    """
    entry = None
    if backend != "zarr":
        objects = read_metadata(folder).objects
        entry = next((item for item in objects if item.name.startswith(COMMON)), None)
    has_file = (folder / FILE).exists()
    if entry is None and not has_file:
        raise source_error(
            "incomplete-megatron",
            f"{folder} has no common state: arguments, iteration, and param groups",
            notes=[f"neither a file `{FILE}`, nor an object `common_state` in `.metadata`"],
            helps=["copy the whole folder"],
        )
    beside: object = None
    if has_file:
        chunks.know(FILE)
        beside = open_torch_file(folder / FILE).root
    if entry is None:
        return _state(beside, FILE, folder, ())
    root = chunks.object_of(entry)
    root = root[0] if isinstance(root, list) and len(root) == 1 else root
    left: tuple[Left, ...] = ()
    if has_file and encode(beside) != encode(root):
        why = "it says other things than the common state that was saved with the tensors"
        left = (Left(FILE, "", why),)
    return _state(root, entry.file, folder, left)


def _state(root: object, file: str, folder: Path, left: tuple[Left, ...]) -> CommonState:
    entries = root if isinstance(root, dict) else {}
    path = str(folder / file)
    if "args" in entries:
        args = arguments_in(entries["args"], path)
    else:
        args = arguments_beside(folder) or Arguments({}, path)
    step = entries.get("global_step", step_beside(folder))
    if "iteration" not in entries and isinstance(step, int):
        entries = {**entries, "iteration": step}
    if args is None:
        raise no_arguments(path)
    return CommonState(entries, args, file, left)
