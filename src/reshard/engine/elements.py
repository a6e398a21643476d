"""How numpy sees the element types: as numbers, as bits, and as text for people."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from reshard.dtypes import DType

Elements = npt.NDArray[Any]

_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.BOOL: np.dtype(np.bool_),
    DType.U8: np.dtype(np.uint8),
    DType.I8: np.dtype(np.int8),
    DType.F4: np.dtype(np.uint8),  # two numbers, which nothing looks at
    DType.F8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.F8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.F8_E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.F8_E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.F8_E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.I16: np.dtype("<i2"),
    DType.U16: np.dtype("<u2"),
    DType.F16: np.dtype("<f2"),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.I32: np.dtype("<i4"),
    DType.U32: np.dtype("<u4"),
    DType.F32: np.dtype("<f4"),
    DType.I64: np.dtype("<i8"),
    DType.U64: np.dtype("<u8"),
    DType.F64: np.dtype("<f8"),
    DType.C64: np.dtype("<c8"),
    DType.C128: np.dtype("<c16"),
}
_BITS: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
    16: np.dtype([("low", "<u8"), ("high", "<u8")]),
}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy type of the numbers, little endian."""
    return _NUMPY[dtype]


def bits_dtype(dtype: DType) -> np.dtype[Any]:
    """A numpy type of the same size that compares and copies bits, whatever they mean."""
    return _BITS[dtype.itemsize]


def widened(data: Elements) -> Elements:
    """The numbers in float64 (complex128 for complex ones)."""
    with np.errstate(all="ignore"):  # a signaling NaN is no news
        return data.astype(np.complex128 if data.dtype.kind == "c" else np.float64)


def max_difference(left: Elements, right: Elements) -> float | None:
    """The largest absolute difference, in float64; None when no pair has a finite one."""
    with np.errstate(all="ignore"):
        apart = np.abs(widened(left) - widened(right))
    apart = apart[np.isfinite(apart)]
    return float(apart.max()) if apart.size else None


def max_ulps(left: Elements, right: Elements) -> int | None:
    """The largest distance of two numbers of a type, counted in numbers of that type.

    `-0.0` and `0.0` are 0 apart.  None for types that are not floating point, and when no pair is
    of two numbers.
    """
    kind = left.dtype
    if kind.kind == "c" or not (kind.kind == "f" or kind.name.startswith(("bfloat", "float"))):
        return None
    numbers = np.flatnonzero(~(np.isnan(left) | np.isnan(right)))
    if not len(numbers):
        return None
    unsigned = _BITS[kind.itemsize]
    sign = 0 if kind.name.endswith("e8m0fnu") else 1 << (8 * kind.itemsize - 1)
    places = []
    for side in (left, right):
        bits = side[numbers].view(unsigned).astype(np.uint64)
        below = (bits & np.uint64(sign)) != 0
        size = bits & ~np.uint64(sign)
        # Counted from the least number of the type, so that all are positive.
        places.append(np.where(below, np.uint64(sign) - size, np.uint64(sign) + size))
    apart = np.where(places[0] > places[1], places[0] - places[1], places[1] - places[0])
    return int(apart.max())


def show_element(data: Elements) -> str:
    """One element with its bits, e.g. `0.05 (0x3d4ccccd)`.

    Args:  data: one element.
    """
    value = data.reshape(())
    hexadecimal = value.tobytes()[::-1].hex()
    kind = value.dtype.kind
    text = str(value.item()) if kind in "iub" else str(value)
    return f"{text} (0x{hexadecimal})"
