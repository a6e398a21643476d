"""Torch files from trees with numpy arrays, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.storage.inert import Record, Size
from reshard.storage.torch_writer import NewStorage, NewTensor
from torch_files import save

_DTYPES = {
    "float32": DType.F32,
    "float64": DType.F64,
    "int64": DType.I64,
    "uint8": DType.U8,
    "bfloat16": DType.BF16,
}


def write_tree(path: Path, root: object) -> None:
    """A file of `torch.save` with a tree whose tensors are arrays; one array is one storage."""
    data: dict[NewStorage, bytes] = {}
    made: dict[int, NewTensor] = {}

    def tensors(value: object) -> object:
        if isinstance(value, np.ndarray):
            known = made.get(id(value))
            if known is None:
                storage = NewStorage(_DTYPES[str(value.dtype)], value.size)
                data[storage] = np.ascontiguousarray(value).tobytes()
                known = NewTensor(storage, 0, value.shape, row_major(value.shape))
                made[id(value)] = known
            return known
        if isinstance(value, Record):
            args = tuple(tensors(item) for item in value.args)
            state = [tensors(item) for item in value.state]
            return Record(value.module, value.name, args, value.how, state)
        if isinstance(value, Size):
            return value
        if isinstance(value, dict):
            return {key: tensors(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(tensors(item) for item in value)
        return value

    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, tensors(root), data)


def counted(*shape: int, start: int = 0) -> Any:
    """Elements that name themselves."""
    size = int(np.prod(shape, dtype=int))
    return (np.arange(size, dtype=np.float32) + start).reshape(shape)
