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


FLOATS = {  # mantissa bits, least exponent, greatest value, whether it has infinities
    DType.F8_E4M3: (3, -6, Fraction(448), False),
    DType.F8_E5M2: (2, -14, Fraction(57344), True),
    DType.F8_E4M3FNUZ: (3, -7, Fraction(240), False),
    DType.F8_E5M2FNUZ: (2, -15, Fraction(57344), False),
    DType.F16: (10, -14, Fraction(65504), True),
    DType.BF16: (7, -126, Fraction(2**128 - 2**120), True),
    DType.F32: (23, -126, Fraction(2**128 - 2**104), True),
    DType.F64: (52, -1022, Fraction(2**1024 - 2**971), True),
}
INTEGERS = {
    DType.BOOL: (0, 1),
    **{
        DType(f"{kind}{bits}"): (
            (0, 2**bits - 1) if kind == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        for kind in "UI"
        for bits in (8, 16, 32, 64)
    },
}


def _rounded(value: Fraction, mantissa: int, least: int) -> Fraction:
    """To nearest even, with as many exponents above as it takes."""
    if not value:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, least) - mantissa)
    return round(value / step) * step  # Python rounds halves to even


def _specials(dtype: DType) -> np.ndarray:
    """Every value of a short type; the odd ones of a long one, with payloads of NaN."""
    kind = numpy_dtype(dtype)
    if dtype == DType.BOOL:
        return np.array([False, True])
    if dtype.itemsize == 1:
        return np.arange(256, dtype=np.uint8).view(kind)
    if dtype in INTEGERS:
        low, high = INTEGERS[dtype]
        near = [x + d for x in (0, 127, 128, 255, 256, 2**11, 2**24) for d in (-1, 0, 1)]
        near += [low, low + 1, high - 1, high, 2**53 + 1, 2**63 - 1, -(2**31)]
        return np.array([x for x in dict.fromkeys(near) if low <= x <= high], kind)
    mantissa, bits = FLOATS[dtype][0], 8 * dtype.itemsize
    top = 1 << (bits - 1)
    exponents = top - (1 << mantissa)
    words = [0, 1, (1 << mantissa) - 1, 1 << mantissa, exponents - 1, exponents, exponents + 1]
    words += [exponents + (1 << (mantissa - 1)), top - 1]
    out = [
        np.array([w | sign for w in words for sign in (0, top)], f"u{dtype.itemsize}").view(kind)
    ]
    with np.errstate(all="ignore"):
        for *_, limit, _ in FLOATS.values():
            edges = np.array([float(limit), 1.0, 0.3, 240.0, 65520.0, 127.0, 2.0**31, 2.0**63])
            edges = edges.astype(kind)
            out += [edges, -edges]
            if dtype in (DType.F32, DType.F64):
                out += [np.nextafter(edges, kind.type(np.inf)), np.nextafter(edges, kind.type(0))]
    return np.concatenate(out)


def _expected(value: float | int, dst: DType) -> Fraction | float | None:
    """What a number becomes; None where that is refused."""
    if dst in INTEGERS:
        low, high = INTEGERS[dst]
        if value != value or value in (np.inf, -np.inf) or value != int(value):
            return None
        return Fraction(int(value)) if low <= value <= high else None
    mantissa, least, limit, has_infinity = FLOATS[dst]
    if value != value:
        return float(value)
    if value in (np.inf, -np.inf):
        return float(value) if has_infinity else None
    exact = _rounded(Fraction(value), mantissa, least)
    return exact if abs(exact) <= limit else None


@pytest.mark.parametrize("dst", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("src", [*FLOATS, *INTEGERS])
def test_every_pair_of_types_keeps_or_refuses_special_values(src: DType, dst: DType) -> None:
    cast = find_cast(src, dst)
    if src == dst:
        assert cast is None
        return
    assert cast is not None
    rounds = src in FLOATS and dst in FLOATS
    for item in _specials(src):
        data = np.array([item])
        with np.errstate(all="ignore"):
            value = int(item) if src in INTEGERS else float(item)
        wanted = _expected(value, dst)
        if not rounds and wanted is not None:
            is_number = not isinstance(wanted, float)
            minus_zero = value == 0 and np.signbit(float(value))
            if not is_number or wanted != Fraction(value) or minus_zero:
                wanted = None  # only what comes back the same is converted
        try:
            found = widened(cast(data))[0] if dst in FLOATS else int(cast(data)[0])
        except CastError:
            assert wanted is None, (src, dst, value)
            continue
        assert wanted is not None, (src, dst, value, found)
        if isinstance(wanted, float):
            assert found == wanted or (wanted != wanted and found != found), (src, dst, value)
            continue
        assert Fraction(found) == wanted, (src, dst, value, found)
        if dst in FLOATS and "FNUZ" not in dst and found == 0 and src in FLOATS:
            assert np.signbit(found) == np.signbit(float(value))


def test_types_without_infinities_refuse_them() -> None:
    for dtype in (DType.F8_E4M3, DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ):
        cast = find_cast(DType.F32, dtype)
        assert cast is not None
        for value in (np.inf, -np.inf):
            with pytest.raises(CastError) as caught:
                cast(np.array([1, np.nan, value], np.float32))
            assert caught.value.reason == (
                f"{dtype} has no infinity: {value} (0x{'ff' if value < 0 else '7f'}800000)"
            )


def test_a_part_of_a_complex_number_may_not_overflow() -> None:
    cast = find_cast(DType.C128, DType.C64)
    assert cast is not None
    kept = np.array([complex(np.inf, 1), complex(np.nan, -np.inf)])
    assert np.array_equal(cast(kept).view(np.float32), kept.view(np.float64), equal_nan=True)
    for value in (complex(np.inf, 1e300), complex(1e300, np.nan), complex(1, 1e39)):
        with pytest.raises(CastError):
            cast(np.array([1, value]))
