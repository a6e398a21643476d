"""A number that a pickle holds itself, as a tensor of no dimensions."""

from __future__ import annotations

import struct

from reshard.dtypes import DType
from reshard.plan.catalog import Coord, Fragment, LocalTensor


def number_tensor(
    name: str, state: str, coord: Coord, value: float | int, file: str
) -> LocalTensor:
    """A number of one parameter: in fp32, which torch counts steps in, where that is exact."""
    dtype, data = number_bytes(value)
    return LocalTensor(name, state, coord, (), dtype, (Fragment(0, 1, file, 0, None, data),))


def number_bytes(value: float | int) -> tuple[DType, bytes]:
    """The type and the bytes of a number."""
    if abs(value) < 1 << 24 and struct.unpack("<f", struct.pack("<f", value))[0] == value:
        return DType.F32, struct.pack("<f", value)
    if isinstance(value, int):
        return DType.I64, value.to_bytes(8, "little", signed=True)
    return DType.F64, struct.pack("<d", value)
