"""Element types are converted as the IEEE rules say, or not at all."""

from __future__ import annotations

import struct
from bisect import bisect_left
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.dtypes import DType
from reshard.engine.cast import CastError, find_cast, round_float64
from reshard.engine.elements import numpy_dtype, widened

NARROW = [DType.BF16, DType.F16, DType.F8_E4M3, DType.F8_E5M2, DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ]


def _grid(dtype: DType) -> list[tuple[Fraction, int]]:
    """Every finite value that is not negative, with its bits."""
    count = 1 << (8 * dtype.itemsize - 1)
    bits = np.arange(count, dtype=f"u{dtype.itemsize}")
    values = widened(bits.view(numpy_dtype(dtype)))
    return [(Fraction(v), int(b)) for b, v in zip(bits, values, strict=True) if np.isfinite(v)]


GRIDS = {dtype: _grid(dtype) for dtype in NARROW}


def _nearest(value: float, dtype: DType) -> int:
    """Bits of the value next to a positive one; of two as near, the one with an even mantissa."""
    grid, exact = GRIDS[dtype], Fraction(value)
    at = bisect_left(grid, (exact, 0))
    near = grid[max(0, at - 1) : at + 1]
    return min(near, key=lambda item: (abs(item[0] - exact), item[1] & 1))[1]


@pytest.mark.parametrize("dtype", NARROW)
@given(data=st.data())
def test_float64_is_rounded_once(dtype: DType, data: st.DataObject) -> None:
    grid = GRIDS[dtype]
    at = data.draw(st.integers(0, len(grid) - 2))
    low, high = grid[at][0], grid[at + 1][0]
    middle = float((low + high) / 2)  # exact: float64 has bits to spare
    beside = data.draw(st.sampled_from([middle, float(low), float(high)]))
    value = data.draw(
        st.sampled_from([beside, np.nextafter(beside, np.inf), np.nextafter(beside, 0.0)])
    )
    if Fraction(float(value)) > grid[-1][0]:
        return
    made = round_float64(np.array([value, -value], np.float64), dtype)
    found = made.view(f"u{dtype.itemsize}")
    assert int(found[0]) == _nearest(float(value), dtype)
    if made[1] != 0:
        assert made[1] == -made[0]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_float32_becomes_bfloat16_by_the_bits(words: list[int]) -> None:
    cast = find_cast(DType.F32, DType.BF16)
    assert cast is not None
    for word in words:
        rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
        (value,) = struct.unpack("<f", struct.pack("<I", word))
        data = np.array([word], np.uint32).view(np.float32)
        if np.isfinite(value) and rounded & 0x7FFF >= 0x7F80:
            with pytest.raises(CastError):
                cast(data)
        elif np.isnan(value):
            assert np.isnan(widened(cast(data)))
        else:
            assert int(cast(data).view(np.uint16)[0]) == rounded


@pytest.mark.parametrize("narrow", NARROW)
def test_widening_and_back_changes_no_value(narrow: DType) -> None:
    bits = np.array([bits for _, bits in GRIDS[narrow]], f"u{narrow.itemsize}")
    data = bits.view(numpy_dtype(narrow))
    for wide in (DType.F32, DType.F64):
        there, back = find_cast(narrow, wide), find_cast(wide, narrow)
        assert there is not None
        assert back is not None
        assert np.array_equal(back(there(data)).view(bits.dtype), bits)


@pytest.mark.parametrize(
    ("src", "dst", "values"),
    [
        (DType.I64, DType.F32, [0, 1, -(2**24), 2**40]),
        (DType.F32, DType.I32, [0.0, -7.0, 2.0**30]),
        (DType.U8, DType.BOOL, [0, 1]),
        (DType.BOOL, DType.F16, [False, True]),
        (DType.I32, DType.BF16, [0, 255, -256]),
        (DType.I32, DType.U8, [0, 255]),
    ],
)
def test_integers_are_converted_exactly(src: DType, dst: DType, values: list[float]) -> None:
    cast = find_cast(src, dst)
    assert cast is not None
    assert cast(np.array(values, numpy_dtype(src))).astype(np.float64).tolist() == values


@pytest.mark.parametrize(
    ("src", "dst", "value"),
    [
        (DType.I64, DType.F32, 2**24 + 1),
        (DType.I64, DType.F64, 2**63 - 1),
        (DType.U64, DType.F64, 2**64 - 1),
        (DType.F32, DType.I32, 0.5),
        (DType.F32, DType.I32, float("nan")),
        (DType.F64, DType.I64, 2.0**63),
        (DType.F32, DType.I32, -0.0),
        (DType.U8, DType.BOOL, 2),
        (DType.I32, DType.U8, -1),
        (DType.F32, DType.F16, 65520.0),
        (DType.F32, DType.F8_E4M3, 1000.0),
        (DType.F64, DType.F32, 1e39),
    ],
)
def test_what_has_no_equal_is_refused(src: DType, dst: DType, value: float) -> None:
    cast = find_cast(src, dst)
    assert cast is not None
    with pytest.raises(CastError):
        cast(np.array([0, value], numpy_dtype(src)))


def test_complex_numbers_stay_complex() -> None:
    cast = find_cast(DType.C128, DType.C64)
    assert cast is not None
    assert cast(np.array([1 + 2j])).tolist() == [1 + 2j]
    with pytest.raises(CastError):
        find_cast(DType.C64, DType.F32)


def test_infinities_and_signed_zeros_stay() -> None:
    cast = find_cast(DType.F32, DType.BF16)
    assert cast is not None
    data = np.array([np.inf, -np.inf, 0.0, -0.0], np.float32)
    assert cast(data).view(np.uint16).tolist() == [0x7F80, 0xFF80, 0, 0x8000]
