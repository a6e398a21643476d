"""Flat ranges as boxes, against unravelling every index."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brute_force import box_indices, tensor_elements
from reshard.algebra.box import Box
from reshard.algebra.flat import cut, flat_to_boxes, is_nested
from reshard.algebra.piece import Piece, row_major
from reshard.algebra.term import Extent, Leaf, Part, Product, Sum, segment_piece, segments

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int, tuple[int, ...]]:
    """A shape and a flat range in it."""
    shape = draw(shapes)
    total = Box.whole(shape).volume
    start = draw(st.integers(0, total))
    return start, draw(st.integers(0, total - start)), shape


@given(ranges())
def test_boxes_are_the_range_in_order(case: tuple[int, int, tuple[int, ...]]) -> None:
    start, numel, shape = case
    boxes = flat_to_boxes(start, numel, shape)
    steps = row_major(shape)
    flat = [
        sum(i * step for i, step in zip(index, steps, strict=True))
        for box in boxes
        for index in box_indices(box.lo, box.size)
    ]
    assert flat == list(range(start, start + numel))
    assert len(boxes) <= 2 * max(0, len(shape) - 1) + 1
    assert all(box.volume for box in boxes)


@pytest.mark.parametrize(("start", "numel"), [(-1, 2), (5, 2), (0, -1)])
def test_a_range_outside_is_refused(start: int, numel: int) -> None:
    with pytest.raises(ValueError, match="exceeds an array of 6 elements"):
        flat_to_boxes(start, numel, (2, 3))


def test_no_fewer_boxes_would_do() -> None:
    assert flat_to_boxes(5, 20, (3, 3, 3)) == (
        Box((0, 1, 2), (1, 1, 1)),
        Box((0, 2, 0), (1, 1, 3)),
        Box((1, 0, 0), (1, 3, 3)),
        Box((2, 0, 0), (1, 2, 3)),
        Box((2, 2, 0), (1, 1, 1)),
    )


@given(st.data())
def test_ranges_of_a_sum(data: st.DataObject) -> None:
    """Each atom of a fused, padded tensor keeps few boxes, and their addresses are those cut."""
    sizes = {axis: data.draw(st.integers(1, 4)) for axis in "kqdh"}
    extents = {
        axis: Extent(data.draw(st.integers(0, 3)), size, size + data.draw(st.integers(0, 1)))
        for axis, size in sizes.items()
    }
    k, q, d, h = (Leaf(axis) for axis in "kqdh")
    dims = (Product((k, Sum((Part("a", Product((q, d))), Part("b", d), Part("c", d))))), h)
    stored = tensor_elements(dims, extents)
    start = data.draw(st.integers(0, len(stored)))
    stop = data.draw(st.integers(start, len(stored)))
    for segment in segments(dims, extents):
        axes = ("k", "q", "d", "h") if segment.labels == ("a",) else ("k", "d", "h")
        piece = segment_piece(segment, axes, extents)
        found = cut(piece, start, stop)
        assert len(found) <= 2 * (len(axes) - 1) + 1
        held = {
            (item.at(index), index)
            for item in found
            for index in box_indices(item.box.lo, item.box.size)
        }
        assert held == {
            (at, tuple(element[1][axis] for axis in axes))
            for at, element in enumerate(stored)
            if element is not None and element[0] == segment.labels and start <= at < stop
        }
        assert [item.offset for item in found] == sorted(item.offset for item in found)


def test_strides_that_are_not_nested_are_refused() -> None:
    piece = Piece(Box.whole((2, 3)), 0, (1, 1))
    assert not is_nested(piece)
    assert is_nested(Piece(Box.whole((2, 1)), 0, (1, 0)))
    with pytest.raises(ValueError, match="are not nested"):
        cut(piece, 1, 3)
    assert cut(piece, 0, 4) == (piece,)
    assert cut(piece, 4, 9) == ()


def test_an_empty_piece_is_nothing() -> None:
    assert cut(Piece(Box.whole((0, 3)), 0, (3, 1)), 0, 9) == ()
