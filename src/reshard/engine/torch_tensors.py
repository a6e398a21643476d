"""Arrays as torch tensors; the one module below `reshard.torch` that imports torch."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from reshard.dtypes import DType

_TORCH: dict[DType, str] = {
    DType.BOOL: "bool",
    DType.U8: "uint8",
    DType.I8: "int8",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E8M0: "float8_e8m0fnu",
    DType.F8_E4M3FNUZ: "float8_e4m3fnuz",
    DType.F8_E5M2FNUZ: "float8_e5m2fnuz",
    DType.I16: "int16",
    DType.U16: "uint16",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.I32: "int32",
    DType.U32: "uint32",
    DType.F32: "float32",
    DType.I64: "int64",
    DType.U64: "uint64",
    DType.F64: "float64",
    DType.C64: "complex64",
    DType.C128: "complex128",
}


def torch_dtype(dtype: DType) -> Any:
    """The torch type of an element type.

    Raises: TypeError where this torch has none.
    """
    found = getattr(torch, _TORCH[dtype], None)
    if found is None:
        raise TypeError(f"torch {torch.__version__} has no {_TORCH[dtype]}")
    return found


def as_tensor(array: NDArray[Any], dtype: DType) -> Any:
    """A contiguous array that nothing else holds, as a tensor over the same memory."""
    flat = torch.from_numpy(array.reshape(-1).view("u1"))
    return flat.view(torch_dtype(dtype)).reshape(array.shape)
