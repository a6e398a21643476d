"""Arrays of the `zarr` backend of Megatron-core before 0.10: a file for each box.

Source: megatron/core/dist_checkpointing/strategies/zarr.py (core 0.3 to 0.12); Zarr storage
specification version 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.dist_names import FlatKey, StateKey, key_of
from reshard.plan.catalog import Fragment, SourceFile
from reshard.storage.bounded_json import load_bounded
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.torch_file import open_torch_file
from reshard.store.regular_file import read_file

_MAX_NBYTES = 1 << 20
_TYPES = {
    "<f4": DType.F32,
    "<f2": DType.F16,
    "<f8": DType.F64,
    "<i8": DType.I64,
    "<i4": DType.I32,
    "|u1": DType.U8,
    "|b1": DType.BOOL,
    "bfloat16": DType.BF16,
}
_BITS16 = ("<i2", "<u2")


class ZarrArray:
    """One array: its type, its shape, and where its boxes lie.

    Args:  folder: that of the array.  root: of the checkpoint.
           half: what two-byte integers stand for, since zarr has no bf16.
    Raises: ReshardError[bad-zarr | missing-chunk | truncated | source-unreadable].
    """

    def __init__(self, folder: Path, root: Path, half: DType | None) -> None:
        self._folder, self._root = folder, root
        path = folder / ".zarray"
        try:
            header = load_bounded(read_file(path, _MAX_NBYTES))
        except ValueError as error:
            raise self._bad(f"{path} is no JSON: {error}") from None
        if not isinstance(header, dict):
            raise self._bad(f"{path} is no object")
        if header.get("compressor") is not None or header.get("filters"):
            raise self._bad("its chunks are compressed")
        if header.get("zarr_format") != 2 or header.get("order") != "C":
            raise self._bad("it is not of zarr format 2 in order C")
        dtype = header.get("dtype")
        kind = half if dtype in _BITS16 else _TYPES.get(str(dtype))
        if kind is None:
            raise self._bad(f"its element type is {dtype}")
        self.dtype = kind
        self.shape = self._sizes(header.get("shape"))
        self.chunks = self._sizes(header.get("chunks"))
        self._separator = str(header.get("dimension_separator", "."))
        if len(self.chunks) != len(self.shape) or not all(self.chunks):
            raise self._bad(f"chunks {list(self.chunks)} of shape {list(self.shape)}")
        self.files: list[SourceFile] = []

    def fragments(self) -> tuple[Fragment, ...]:
        """Every chunk as a box; those at an edge are stored whole."""
        described = self._folder / ".zarray"
        stat = described.stat()
        name = str(described.relative_to(self._root))
        self.files.append(SourceFile(name, stat.st_size, stat.st_mtime_ns))
        grid = [range(-(-s // c)) for s, c in zip(self.shape, self.chunks, strict=True)]
        nbytes = prod(self.chunks) * self.dtype.itemsize
        out = []
        for cell in product(*grid):
            path = self._folder / (self._separator.join(map(str, cell)) or "0")
            try:
                stat = path.stat()
            except OSError:
                raise source_error(
                    "missing-chunk",
                    f"a chunk of `{self._folder.name}` is not stored",
                    notes=[f"{path} is missing", f"of shape {list(self.shape)}"],
                    helps=["the checkpoint is damaged; go back to an earlier one"],
                ) from None
            if stat.st_size != nbytes:
                raise source_error(
                    "truncated",
                    f"{path} has {stat.st_size} bytes, and a chunk of it {nbytes}",
                    helps=["the file was not written or copied completely; copy it again"],
                )
            name = str(path.relative_to(self._root))
            self.files.append(SourceFile(name, stat.st_size, stat.st_mtime_ns))
            lo = tuple(i * c for i, c in zip(cell, self.chunks, strict=True))
            size = tuple(min(c, s - a) for c, s, a in zip(self.chunks, self.shape, lo, strict=True))
            strides = None if size == self.chunks else row_major(self.chunks)
            out.append(Fragment(0, prod(size), name, 0, strides, None, Box(lo, size)))
        return tuple(out)

    def _sizes(self, value: object) -> tuple[int, ...]:
        items = value if isinstance(value, list) else [None]
        sizes = tuple(n for n in items if isinstance(n, int) and 0 <= n < 1 << 48)
        if len(sizes) != len(items):
            raise self._bad(f"a shape of {value}")
        return sizes

    def _bad(self, why: str) -> ReshardError:
        return source_error(
            "bad-zarr",
            f"the array {self._folder} is not read",
            notes=[why],
            helps=["load it with the Megatron that wrote it, and save it as `torch_dist`"],
        )


def zarr_arrays(folder: Path, half: DType | None) -> Iterator[tuple[StateKey, ZarrArray]]:
    """Every array of a checkpoint with what its key says.

    Raises: what `ZarrArray` raises.
    """
    for path in sorted(folder.rglob(".zarray")):
        key = key_of(path.parent.relative_to(folder).as_posix())
        if isinstance(key, FlatKey):
            raise source_error(
                "bad-zarr",
                f"the array {path.parent} is not read",
                notes=["it is a flat buffer of the distributed optimizer"],
                helps=["load it with the Megatron that wrote it, and save it as `torch_dist`"],
            )
        yield key, ZarrArray(path.parent, folder, half)


def zarr_objects(folder: Path, chunks: ChunkReader) -> dict[str, object]:
    """Pickled objects: a file for each, named by its key and its shard."""
    out = {}
    for path in sorted(folder.rglob("shard_*.pt")):
        name = path.relative_to(folder).as_posix()
        chunks.know(name)
        out[name.removesuffix(".pt")] = open_torch_file(path).root
    return out
