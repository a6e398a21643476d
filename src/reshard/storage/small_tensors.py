"""Small tensors within the state of a training, such as a learning rate, kept with their bytes.

A hyper-parameter that is a tensor is one in every format: `{"$tensor": {"dtype", "shape", "data"}}`
among the param groups, the bytes in base64.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.storage.objects import to_json
from reshard.storage.torch_file import TensorRef, read_small

T = TypeVar("T")

_MAX_COMPARED = 1 << 20

_LETTERS = {DType.F32: "f", DType.F64: "d", DType.I64: "q", DType.I32: "i"}


def small_tensor(ref: TensorRef) -> object:
    """A small tensor as JSON.

    Raises: ReshardError[unkept-object] for a large one.
    """
    try:
        data = base64.b64encode(read_small(ref)).decode("ascii")
    except ValueError:
        raise source_error(
            "unkept-object",
            "an object of the checkpoint cannot be kept",
            notes=[f"it holds a tensor of shape {list(ref.shape)}, in {ref.file}"],
        ) from None
    return {"$tensor": {"dtype": str(ref.dtype), "shape": list(ref.shape), "data": data}}


def fingerprint(value: object) -> object:
    """What is equal for equal values of two files, with small tensors compared by their bytes."""

    def tensor(ref: TensorRef) -> object:
        if ref.nbytes > _MAX_COMPARED:
            return [ref.file, ref.byte_offset]
        digest = hashlib.sha256(read_small(ref)).hexdigest()
        return [f"{ref.dtype}", list(ref.shape), digest]

    return to_json(value, tensor)


def constant_of(told: object, constant: Callable[[DType, tuple[int, ...], bytes], T]) -> T:
    """The tensor of what stands for `$tensor`.

    Args:  constant: makes a tensor of the target.
    """
    if not isinstance(told, Mapping):
        raise TypeError(f"a tensor that is not kept with its bytes, `{told}`")
    shape = tuple(cast("list[int]", told["shape"]))
    data = base64.b64decode(cast("str", told["data"]), validate=True)
    return constant(DType(cast("str", told["dtype"])), shape, data)


def plain(told: object) -> object:
    """A value for people: the number where it is a tensor of one."""
    body = told.get("$tensor") if isinstance(told, dict) else None
    if not isinstance(body, Mapping):
        return told
    letter = _LETTERS.get(DType(cast("str", body["dtype"])))
    data = base64.b64decode(cast("str", body["data"]))
    if letter is None or len(data) != struct.calcsize(f"<{letter}"):
        return told
    number = struct.unpack(f"<{letter}", data)[0]
    return float(f"{number:.7g}") if letter == "f" else number
