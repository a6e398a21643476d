"""Terms: where every element of every atom lies, against writing the tensor out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from brute_force import Element, box_indices, tensor_elements
from reshard.algebra.box import Box
from reshard.algebra.term import (
    Extent,
    Leaf,
    Part,
    Product,
    Sum,
    Term,
    segment_piece,
    segments,
    stored_shape,
    term_axes,
    term_size,
)
from reshard.algebra.window import window_parts


@st.composite
def stored_tensors(draw: st.DrawFn) -> tuple[tuple[Term, ...], dict[str, Extent]]:
    """Dimensions with products and nested sums, each axis once on the way to every atom."""
    names = iter(f"a{index}" for index in range(100))
    extents: dict[str, Extent] = {}

    def leaf() -> Leaf:
        axis = next(names)
        size = draw(st.integers(0, 3) if draw(st.integers(0, 9)) == 0 else st.integers(1, 3))
        extents[axis] = Extent(draw(st.integers(0, 4)), size, size + draw(st.integers(0, 1)))
        return Leaf(axis)

    def term(depth: int) -> Term:
        kind = draw(st.sampled_from(["leaf", "leaf", "product", "sum"])) if depth else "leaf"
        if kind == "product":
            return Product(tuple(term(depth - 1) for _ in range(draw(st.integers(0, 3)))))
        if kind == "sum":
            count = draw(st.integers(1, 3))
            parts = [Part("xyz"[i], term(depth - 1)) for i in range(count)]
            if draw(st.booleans()):
                parts.append(Part("w", parts[0].term))  # parts may share an axis
            return Sum(tuple(parts))
        return leaf()

    return tuple(term(2) for _ in range(draw(st.integers(0, 3)))), extents


Elements = dict[tuple[str, ...], set[tuple[int, tuple[tuple[str, int], ...]]]]


def by_labels(elements: list[Element]) -> Elements:
    """Addresses and indices of each atom's elements."""
    out: Elements = {}
    for address, element in enumerate(elements):
        if element is not None:
            labels, index = element
            out.setdefault(labels, set()).add((address, tuple(sorted(index.items()))))
    return out


@given(stored_tensors())
def test_segments_say_where_every_element_is(
    case: tuple[tuple[Term, ...], dict[str, Extent]],
) -> None:
    dims, extents = case
    shape = stored_shape(dims, extents)
    assert shape == tuple(len(tensor_elements([term], extents)) for term in dims)
    assert shape == tuple(term_size(term, extents) for term in dims)
    found: Elements = {}
    for segment in segments(dims, extents):
        axes = tuple(sorted(axis for axis, _ in segment.strides))
        piece = segment_piece(segment, axes, extents)
        for index in box_indices(piece.box.lo, piece.box.size):
            where = piece.at(index), tuple(zip(axes, index, strict=True))
            found.setdefault(segment.labels, set()).add(where)
    assert found == by_labels(tensor_elements(dims, extents))


@given(stored_tensors(), st.data())
def test_windows_hold_what_lies_in_them(
    case: tuple[tuple[Term, ...], dict[str, Extent]], data: st.DataObject
) -> None:
    dims, extents = case
    shape = stored_shape(dims, extents)
    lo = tuple(data.draw(st.integers(0, n)) for n in shape)
    size = tuple(data.draw(st.integers(0, n - a)) for a, n in zip(lo, shape, strict=True))
    order = data.draw(st.permutations(range(len(shape))))
    strides = [0] * len(shape)
    step = 1
    for axis in order:
        strides[axis] = step
        step *= size[axis] + 1
    stored = tensor_elements(dims, extents)
    wanted: list[Element] = [None] * (step + 1)
    for index in box_indices(lo, size):
        at = 0
        for i, n in zip(index, shape, strict=True):
            at = at * n + i
        to = sum((i - a) * s for i, a, s in zip(index, lo, strides, strict=True))
        wanted[to] = stored[at]
    found: Elements = {}
    for part in window_parts(dims, extents, Box(lo, size), tuple(strides)):
        axes = tuple(sorted({a for term in dims for a in term_axes(term)} & part.strides.keys()))
        piece = part.piece(axes, extents)
        for index in box_indices(piece.box.lo, piece.box.size):
            where = piece.at(index), tuple(zip(axes, index, strict=True))
            assert where not in found.setdefault(part.labels, set())
            found[part.labels].add(where)
    assert {labels: held for labels, held in found.items() if held} == by_labels(wanted)


def test_an_axis_that_is_only_in_the_name() -> None:
    extents = {"layer": Extent(5, 1, 1), "h": Extent.whole(4)}
    (segment,) = segments((Leaf("h"),), extents)
    piece = segment_piece(segment, ("layer", "h"), extents)
    assert piece.box == Box((5, 0), (1, 4))
    assert piece.strides == (0, 1)
    assert piece.at((5, 3)) == 3


def test_a_product_of_nothing_is_one_element() -> None:
    assert stored_shape((Product(()),), {}) == (1,)
    assert len(segments((Product(()), Leaf("h")), {"h": Extent.whole(2)})) == 1
