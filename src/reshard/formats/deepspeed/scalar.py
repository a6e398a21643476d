"""One number per parameter (`step` and its kind), with the bytes that state it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.storage.torch_file import TensorRef, read_small


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number as one file holds it.

    Args:  data: little-endian bytes.  byte_offset: where they lie, None for a number in a pickle.
    """

    dtype: DType
    data: bytes
    file: str
    byte_offset: int | None

    def local(self, name: str, state: str, coord: Coord) -> LocalTensor:
        """The number as a tensor of shape ()."""
        literal = self.data if self.byte_offset is None else None
        fragment = Fragment(0, 1, self.file, self.byte_offset or 0, None, literal)
        return LocalTensor(name, state, coord, (), self.dtype, (fragment,))

    def __str__(self) -> str:
        formats = {DType.F64: "<d", DType.F32: "<f", DType.I64: "<q", DType.I32: "<i"}
        if self.dtype in formats:
            return f"{struct.unpack(formats[self.dtype], self.data)[0]:g}"
        return f"0x{self.data[::-1].hex()}"


def scalar_of(value: object, file: str) -> Scalar | None:
    """The number that a value is; None when it is not one."""
    if isinstance(value, TensorRef):
        if value.shape != ():
            return None
        return Scalar(value.dtype, read_small(value), file, value.byte_offset)
    if isinstance(value, bool):
        return Scalar(DType.BOOL, bytes([value]), file, None)
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            return None
        return Scalar(DType.I64, value.to_bytes(8, "little", signed=True), file, None)
    if isinstance(value, float):
        return Scalar(DType.F64, struct.pack("<d", value), file, None)
    return None
