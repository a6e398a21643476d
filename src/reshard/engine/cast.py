"""Conversion of element types: rounded once to nearest even, or refused; never quietly wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reshard.dtypes import DType
from reshard.engine.elements import Elements, numpy_dtype, show_element, widened

Cast = Callable[[Elements], Elements]

_ROUNDED = {
    DType.F8_E4M3,
    DType.F8_E5M2,
    DType.F8_E4M3FNUZ,
    DType.F8_E5M2FNUZ,
    DType.F16,
    DType.BF16,
    DType.F32,
    DType.F64,
}
_COMPLEX = {DType.C64, DType.C128}
_WIDE = {DType.F32, DType.F64, DType.C128}
_EXPONENTS = {DType.F16: np.uint16(0x7C00), DType.BF16: np.uint16(0x7F80)}
"""Bits that are all set in infinities and NaN, where numpy's own check is slow."""

_NATIVE = {DType.F16, DType.F32, DType.F64}


class CastError(Exception):
    """Values that the wanted type cannot hold; the caller knows whose they are.

    Args:  reason: what is wrong, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def find_cast(src: DType, dst: DType) -> Cast | None:
    """The function that converts elements, or None when the types are the same.

    Floating point is rounded to nearest even; between integers and floating point only what comes
    back unchanged is converted.

    Raises: CastError, here if no value can be converted, and by the function returned if some
            finite value would overflow, an infinity has no equal, or an exact conversion is not.
    """
    if src == dst:
        return None
    if DType.F4 in (src, dst):
        raise CastError("two numbers in one byte are copied, never converted")
    if (src in _COMPLEX) != (dst in _COMPLEX):
        raise CastError("real and complex numbers are not converted into each other")
    if src in _COMPLEX or (src in _ROUNDED and dst in _ROUNDED):
        return lambda data: _rounded(data, dst)
    return lambda data: _exact(data, src, dst)


def round_float64(data: Elements, dst: DType) -> Elements:
    """Float64 (or complex128) numbers rounded once to a floating point type.

    Raises: CastError if a finite number overflows, or an infinity has no equal.
    """
    return _rounded(data, dst)


def is_rounded(dtype: DType) -> bool:
    """Whether numbers of this type may be rounded: floating point and complex ones."""
    return dtype in _ROUNDED or dtype in _COMPLEX


def _rounded(data: Elements, dst: DType) -> Elements:
    wanted = numpy_dtype(dst)
    direct = dst in _NATIVE or dst in _COMPLEX
    with np.errstate(all="ignore"):
        out = data.astype(wanted) if direct else _to_float32(data).astype(wanted)
        if out.dtype.itemsize > data.dtype.itemsize and dst in _WIDE:
            return out  # holds every value of any smaller type
        lost = _lost(data, out, dst) if np.any(_is_not_finite(out, dst)) else None
    if lost is not None and np.any(lost):
        example = data[lost][:1]
        text = show_element(example)
        if np.all(np.isfinite(example)):
            raise CastError(f"a finite value exceeds {dst}: {text}")
        raise CastError(f"{dst} has no infinity: {text}")
    return out


def _lost(data: Elements, out: Elements, dst: DType) -> Elements:
    """Which elements are infinite or no numbers, and were not."""
    if dst in _COMPLEX:
        wide = widened(data).view(np.float64).reshape(-1, 2)
        parts = out.reshape(-1).view(f"f{out.dtype.itemsize // 2}").reshape(-1, 2)
        found: Elements = np.any(_changed(wide, parts), axis=1).reshape(out.shape)
        return found
    return _changed(data, out)


def _changed(data: Elements, out: Elements) -> Elements:
    became_nan = np.isnan(out) & ~np.isnan(data)
    found: Elements = became_nan | (np.isinf(out) & np.isfinite(data))
    return found


def _is_not_finite(data: Elements, dtype: DType) -> Elements:
    exponent = _EXPONENTS.get(dtype)
    if exponent is None:
        return np.logical_not(np.isfinite(data))
    odd: Elements = (data.view(np.uint16) & exponent) == exponent
    return odd


def _to_float32(data: Elements) -> Elements:
    """Float32 numbers that round to any narrower type as the numbers given would.

    What float32 cannot hold is rounded to odd: rounding it again is then as good as rounding once.
    """
    near = data.astype(np.float32)
    if data.dtype != np.float64:
        return near
    inexact = (near.astype(np.float64) != data) & np.isfinite(near)
    if not np.any(inexact):
        return near
    bits = near.view(np.uint32).copy()
    beyond = inexact & (np.abs(near.astype(np.float64)) > np.abs(data))
    bits -= beyond.astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    return bits.view(np.float32)


def _exact(data: Elements, src: DType, dst: DType) -> Elements:
    bits = f"u{data.dtype.itemsize}"
    with np.errstate(all="ignore"):
        out = data.astype(numpy_dtype(dst))
        kept = out.astype(data.dtype).view(bits) == data.view(bits)
        # What wraps around, or is clamped by the processor, may come back the same.
        kept &= _within(data, dst) & _within(out, src)
    if not np.all(kept):
        example = show_element(data[~kept][:1])
        raise CastError(f"a value of {src} has no equal in {dst}: {example}")
    return out


def _within(data: Elements, integer: DType) -> Elements | bool:
    """Whether numbers are in an integer type's range; true of any other type."""
    wanted = numpy_dtype(integer)
    if wanted.kind not in "iu":
        return True
    limits = np.iinfo(wanted)
    if data.dtype.kind == "b":
        return True
    if data.dtype.kind in "iu":
        own = np.iinfo(data.dtype)
        inside: Elements = (data >= max(limits.min, own.min)) & (data <= min(limits.max, own.max))
        return inside
    wide = widened(data)
    found: Elements = (wide >= float(limits.min)) & (wide < 2.0 * (limits.max // 2 + 1))
    return found
