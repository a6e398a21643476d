"""The weights: a folder for each module, a file for each shard.

Source: nanotron/serialize/weights.py `save_weights`, utils.py `get_path` (2411b02).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.nanotron.slices import SlicesError, parse_pairs, parse_shape
from reshard.plan.catalog import Fragment, LocalTensor, SourceFile
from reshard.storage.safetensors import read_header
from reshard.store.links import refuse_outside

_FILE = re.compile(
    r"model_(?P<param>[A-Za-z0-9_]+?)"
    r"(?:_pp-rank-(?P<pp>[0-9]+)-of-(?P<pps>[0-9]+)_tp-rank-(?P<tp>[0-9]+)-of-(?P<tps>[0-9]+)"
    r"(?:_exp-rank-(?P<ep>[0-9]+)-of-(?P<eps>[0-9]+))?)?\.safetensors"
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a weight.

    Args:  rank: its tp and its expert rank, each None where the tensor is not cut over it.
           pieces: boxes of the whole tensor, addressed in the shard.
    """

    file: str
    rank: tuple[int | None, int | None]
    shape: tuple[int, ...]
    dtype: DType
    byte_offset: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight with all of its shards; `shape` is that of the whole."""

    name: str
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]

    def shard(self, tp: int, ep: int) -> Shard | None:
        """What a rank holds."""
        wanted = {(tp, ep), (tp, None), (None, ep), (None, None)}
        return next((item for item in self.shards if item.rank in wanted), None)


def read_weights(root: Path) -> tuple[dict[str, Weight], tuple[SourceFile, ...]]:
    """Every weight by name, and the files.

    Raises: ReshardError[bad-shard | bad-safetensors | outside-link | source-unreadable].
    """
    files: list[SourceFile] = []
    shards: dict[str, list[tuple[tuple[int, ...], Shard]]] = {}
    for path in _walk(root):
        name, whole, shard, found = _shard(root, path)
        files.append(found)
        shards.setdefault(name, []).append((whole, shard))
    weights = {}
    for name, items in shards.items():
        shape, first = items[0]
        for other, shard in items:
            if other != shape or shard.dtype != first.dtype:
                told = f"it is of {first.dtype} {list(shape)} in `{first.file}`"
                raise _bad(root / shard.file, f"`{name}` is of {shard.dtype} {list(other)}; {told}")
        weights[name] = Weight(name, shape, tuple(shard for _, shard in items))
    return weights, tuple(files)


def local_tensors(weights: Mapping[str, Weight]) -> Iterator[LocalTensor]:
    """Every weight, its shards as boxes."""
    for weight in weights.values():
        fragments = tuple(
            boxed(piece, weight.shape, shard.file, shard.byte_offset, shard.dtype)
            for shard in weight.shards
            for piece in shard.pieces
            if piece.box.volume or not prod(weight.shape)
        )
        dtype = weight.shards[0].dtype
        yield LocalTensor(weight.name, "param", (), weight.shape, dtype, fragments)


def boxed(
    piece: Piece, shape: tuple[int, ...], file: str, byte_offset: int, dtype: DType
) -> Fragment:
    """A box of a whole tensor as a fragment.

    Args:  shape: of the whole.  byte_offset: of address 0.
    """
    box = piece.box
    dense = piece.strides == row_major(box.size) or box.volume <= 1
    return Fragment(
        0,
        box.volume,
        file,
        byte_offset + piece.offset * dtype.itemsize,
        None if dense else piece.strides,
        None,
        None if box == Box.whole(shape) else box,
    )


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root / "model"):
        folders.sort(key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name))
        for name in sorted(files):
            if name.endswith(".safetensors"):
                yield Path(folder) / name


def _shard(root: Path, path: Path) -> tuple[str, tuple[int, ...], Shard, SourceFile]:
    refuse_outside(root, path)
    file = path.relative_to(root).as_posix()
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise _bad(path, "its name is not `model_PARAMETER[_pp-rank-...].safetensors`")
    header = read_header(path)
    if list(header.tensors) != ["data"]:
        raise _bad(path, f"it holds {', '.join(map(repr, header.tensors))}, not `data` alone")
    stored = header.tensors["data"]
    metadata = {key: value for key, value in header.metadata.items() if key != "format"}
    whole = stored.shape
    pieces: tuple[Piece, ...] = (Piece(Box.whole(whole), 0, row_major(whole)),)
    if match["tp"] is not None:
        try:
            whole = parse_shape(metadata.get("unsharded_shape", ""))
            text = metadata.get("local_global_slices_pairs", "")
            pieces = parse_pairs(text, stored.shape, whole)
        except SlicesError as error:
            raise _bad(path, str(error)) from None
    elif metadata:
        raise _bad(path, "its metadata says that it is a shard, its name that it is whole")
    rank = (
        None if match["tp"] is None else int(match["tp"]),
        None if match["ep"] is None else int(match["ep"]),
    )
    shard = Shard(file, rank, stored.shape, stored.dtype, stored.byte_offset, pieces)
    name = ".".join((*path.parent.relative_to(root / "model").parts, match["param"]))
    found = path.stat()
    return name, whole, shard, SourceFile(file, found.st_size, found.st_mtime_ns)


def _bad(path: Path, why: str) -> ReshardError:
    return source_error(
        "bad-shard",
        f"{path} is not a shard of a distributed checkpoint",
        notes=[why],
        helps=["the folder mixes two checkpoints, or is damaged; copy it again"],
    )
