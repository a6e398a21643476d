"""Leaves as tensors of one coordinate, and as the numbers and shapes that they are."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.dtypes import DType
from reshard.formats.described.walk import Leaf
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.storage.inert import Record
from reshard.storage.numbers import literal_tensor, plain_number
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import read_small

Shape = tuple[int, ...]


def are_alike(found: Sequence[Leaf]) -> bool:
    """Whether the numbers of several ranks are one; tensors with dimensions are not compared."""
    values = []
    for leaf in found:
        value = leaf.value
        if isinstance(value, TensorRef):
            if value.shape:
                return False
            values.append((value.dtype, read_small(value)))
        else:
            values.append(_number(value))
    return len(set(values)) == 1


def local_tensor(name: str, state: str, coord: Coord, leaf: Leaf) -> LocalTensor:
    value, file = leaf.value, leaf.file.path
    if isinstance(value, TensorRef):
        strides = None if value.is_contiguous else value.strides
        fragments = (
            (Fragment(0, value.numel, file, value.byte_offset, strides),) if value.numel else ()
        )
        return LocalTensor(name, state, coord, value.shape, value.dtype, fragments)
    return literal_tensor(name, state, _number(value), file, coord)


def _number(value: object) -> tuple[DType, bytes]:
    number = plain_number(value)
    assert number is not None
    return number


def integer(value: object) -> int:
    """A number of a parameter; -1 for what is none, which no state has."""
    return value if isinstance(value, int) else -1


def shape_of(value: object) -> Shape | None:
    if isinstance(value, TensorRef):
        return value.shape
    if isinstance(value, (list, tuple)) and all(isinstance(n, int) for n in value):
        return tuple(value)
    return None


def memory_of(value: object) -> TensorRef | None:
    """The stored elements of a tensor, or of the part of one that a rank has."""
    if isinstance(value, Record):
        state = value.args[3] if len(value.args) == 4 else None
        parts = state[1] if isinstance(state, tuple) and len(state) == 2 else None
        value = parts.get("_local_tensor") if isinstance(parts, dict) else None
    return value if isinstance(value, TensorRef) else None
