"""Boxes, against sets of elements."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from brute_force import box_indices
from reshard.algebra.box import Box


def elements(box: Box) -> set[tuple[int, ...]]:
    """Every element of a box."""
    return set(box_indices(box.lo, box.size))


pairs = st.integers(0, 3).flatmap(
    lambda rank: st.tuples(
        *[
            st.builds(
                Box,
                st.tuples(*[st.integers(0, 4)] * rank),
                st.tuples(*[st.integers(0, 4)] * rank),
            )
        ]
        * 2
    )
)


@given(pairs)
def test_boxes_are_sets(pair: tuple[Box, Box]) -> None:
    a, b = pair
    common = a.intersect(b)
    assert (elements(common) if common else set()) == elements(a) & elements(b)
    assert a.contains(b) == (elements(b) <= elements(a))
    assert a.volume == len(elements(a))
    rest = a.subtract(b)
    assert len(rest) <= max(1, 2 * len(a.lo))
    assert sum(box.volume for box in rest) == len(elements(a) - elements(b))
    assert set().union(*map(elements, rest)) == elements(a) - elements(b)


def test_the_whole_of_a_shape() -> None:
    assert Box.whole((2, 3)) == Box((0, 0), (2, 3))
    assert Box((1, 2), (3, 0)).hi == (4, 2)
    assert Box.whole(()).volume == 1
