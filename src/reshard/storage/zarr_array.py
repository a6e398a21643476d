"""Arrays of Zarr, version 2, without compression: a folder for each, and in it a file for each box.

Source: Zarr storage specification version 2; megatron/core/dist_checkpointing/strategies/zarr.py
(core 0.3 to 0.12), which stores bf16 as integers of two bytes.
"""

from __future__ import annotations

from itertools import product
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.plan.catalog import Fragment, SourceFile
from reshard.storage.bounded_json import load_bounded
from reshard.store.source import LocalSource

HEADER = ".zarray"
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

    Args:  folder: that of the array, in the source.
           half: what two-byte integers stand for, since zarr has no bf16.

    Attributes:  files: that were read.
    Raises: ReshardError[bad-zarr | missing-chunk | truncated | source-unreadable].
    """

    def __init__(self, source: LocalSource, folder: str, half: DType | None) -> None:
        self._source, self._folder = source, folder
        path = source.root / folder / HEADER
        try:
            header = load_bounded(source.text(f"{folder}/{HEADER}", _MAX_NBYTES))
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
        self.files: list[SourceFile] = [source.stat(f"{folder}/{HEADER}")]

    def fragments(self) -> tuple[Fragment, ...]:
        """Every chunk as a box; those at an edge are stored whole."""
        grid = [range(-(-s // c)) for s, c in zip(self.shape, self.chunks, strict=True)]
        nbytes = prod(self.chunks) * self.dtype.itemsize
        out = []
        for cell in product(*grid):
            name = f"{self._folder}/{self._separator.join(map(str, cell)) or '0'}"
            path = self._source.root / name
            try:
                file = self._source.stat(name)
            except OSError:
                raise source_error(
                    "missing-chunk",
                    f"a chunk of `{self._folder}` is not stored",
                    notes=[f"{path} is missing", f"of shape {list(self.shape)}"],
                    helps=["the checkpoint is damaged; go back to an earlier one"],
                ) from None
            if file.nbytes != nbytes:
                raise source_error(
                    "truncated",
                    f"{path} has {file.nbytes} bytes, and a chunk of it {nbytes}",
                    helps=["the file was not written or copied completely; copy it again"],
                )
            self.files.append(file)
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
        return bad_zarr(self._source, self._folder, why)


def bad_zarr(source: LocalSource, folder: str, why: str) -> ReshardError:
    """The error for an array that is not read."""
    return source_error(
        "bad-zarr",
        f"the array {source.root / folder} is not read",
        notes=[why],
        helps=["load it with the Megatron that wrote it, and save it as `torch_dist`"],
    )
