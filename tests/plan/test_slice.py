"""A box of a whole tensor, against every element counted one by one."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.algebra.term import Extent, Leaf, Part, Product, Sum, segment_piece, segments
from reshard.dtypes import DType
from reshard.plan.arrangement import Whole
from reshard.plan.slice import slice_spec

SIZES = st.integers(1, 3)


def _fused(kv: int, q: int, d: int, h: int) -> Whole:
    """`[kv (wq[q d] + wk[d]), h]`: what a slice must not cut wrongly."""
    dims = (
        Product(
            (
                Leaf("kv"),
                Sum(
                    (
                        Part("wq", Product((Leaf("q"), Leaf("d")))),
                        Part("wk", Leaf("d")),
                    )
                ),
            )
        ),
        Leaf("h"),
    )
    extents = {"kv": kv, "q": q, "d": d, "h": h}
    whole = {axis: Extent(0, size, size) for axis, size in extents.items()}
    axes = {"wq": ("kv", "q", "d", "h"), "wk": ("kv", "d", "h")}
    pieces = tuple(
        (s.labels[0], segment_piece(s, axes[s.labels[0]], whole)) for s in segments(dims, whole)
    )
    return Whole("qkv", "param", (kv * (q + 1) * d, h), DType.F32, pieces, ("", ""), 0)


def _places(segments_: tuple[tuple[str, Piece], ...]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Every element by its address."""
    out: dict[int, tuple[str, tuple[int, ...]]] = {}
    for key, piece in segments_:
        ranges = (range(lo, lo + n) for lo, n in zip(piece.box.lo, piece.box.size, strict=True))
        for index in product(*ranges):
            address = piece.at(index)
            assert address not in out
            out[address] = (key, index)
    return out


@given(SIZES, SIZES, SIZES, SIZES, st.data())
def test_a_slice_holds_the_elements_of_its_box(
    kv: int, q: int, d: int, h: int, data: st.DataObject
) -> None:
    whole = _fused(kv, q, d, h)
    lo = tuple(data.draw(st.integers(0, size)) for size in whole.shape)
    size = tuple(
        data.draw(st.integers(0, n - start)) for n, start in zip(whole.shape, lo, strict=True)
    )
    spec = slice_spec(whole, Box(lo, size))
    everything = _places(whole.segments)
    strides, inner = row_major(whole.shape), row_major(size)
    expected = {
        sum(s * x for s, x in zip(inner, index, strict=True)): everything[
            sum(s * (a + x) for s, a, x in zip(strides, lo, index, strict=True))
        ]
        for index in product(*map(range, size))
    }
    assert _places(spec.segments) == expected
    assert (spec.numel, spec.shape) == (len(expected), size)
