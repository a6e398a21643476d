"""A number that stands as an object of its own, as a tensor without dimensions."""

from __future__ import annotations

import struct

from reshard.dtypes import DType
from reshard.plan.catalog import Fragment, LocalTensor


def local_number(name: str, state: str, value: object, file: str) -> LocalTensor | None:
    """The tensor of a Python number; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        dtype, data = DType.I64, value.to_bytes(8, "little", signed=True)
    elif isinstance(value, float):
        dtype, data = DType.F64, struct.pack("<d", value)
    else:
        return None
    return LocalTensor(name, state, (), (), dtype, (Fragment(0, 1, file, 0, None, data),))
