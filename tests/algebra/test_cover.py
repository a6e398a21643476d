"""Covers, against counting every element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brute_force import box_indices
from reshard.algebra.box import Box
from reshard.algebra.cover import Fault, find_fault, find_overlap


def count(boxes: list[Box], space: Box) -> np.ndarray:
    """How many boxes hold each element of a space that has room around it."""
    out = np.zeros(tuple(n + 8 for n in space.size), int)
    for box in boxes:
        for index in box_indices(box.lo, box.size):
            out[tuple(i - a + 4 for i, a in zip(index, space.lo, strict=True))] += 1
    return out


@st.composite
def guillotine(draw: st.DrawFn) -> tuple[Box, list[Box]]:
    """A space and boxes that cover it exactly."""
    rank = draw(st.integers(0, 3))
    lo = tuple(draw(st.integers(0, 3)) for _ in range(rank))
    size = tuple(draw(st.integers(0 if draw(st.booleans()) else 1, 5)) for _ in range(rank))
    boxes = [Box(lo, size)]
    for _ in range(draw(st.integers(0, 8)) if rank else 0):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, rank - 1))
        at = draw(st.integers(0, box.size[axis]))
        boxes.append(Box(box.lo, (*box.size[:axis], at, *box.size[axis + 1 :])))
        start = (*box.lo[:axis], box.lo[axis] + at, *box.lo[axis + 1 :])
        rest = (*box.size[:axis], box.size[axis] - at, *box.size[axis + 1 :])
        boxes.append(Box(start, rest))
    return Box(lo, size), draw(st.permutations(boxes))


@given(guillotine())
def test_an_exact_cover_has_no_fault(case: tuple[Box, list[Box]]) -> None:
    space, boxes = case
    assert find_fault(boxes, space) is None


@given(guillotine(), st.data())
def test_every_fault_is_found_and_is_one(case: tuple[Box, list[Box]], data: st.DataObject) -> None:
    space, boxes = case
    boxes = list(boxes)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(boxes) - 1))
        box = boxes[index]
        change = data.draw(st.sampled_from(["drop", "twice", "grow", "move", "shrink"]))
        rank = len(box.lo)
        if change == "drop" and len(boxes) > 1:
            boxes.pop(index)
        elif change == "twice":
            boxes.append(box)
        elif rank and change in ("grow", "shrink", "move"):
            axis = data.draw(st.integers(0, rank - 1))
            by = {"grow": (0, 1), "shrink": (0, -1), "move": (-1, 0)}[change]
            lo = tuple(a + by[0] * (i == axis) for i, a in enumerate(box.lo))
            size = tuple(max(0, n + by[1] * (i == axis)) for i, n in enumerate(box.size))
            boxes[index] = Box(lo, size)
    check(boxes, space)


@given(st.integers(1, 3).flatmap(lambda rank: st.lists(boxes_of(rank), max_size=6)))
def test_boxes_at_random(boxes: list[Box]) -> None:
    rank = len(boxes[0].lo) if boxes else 2
    check(boxes, Box((0,) * rank, (4,) * rank))


def boxes_of(rank: int) -> st.SearchStrategy[Box]:
    """Small boxes of one rank."""
    lo = st.tuples(*[st.integers(0, 3)] * rank)
    size = st.tuples(*[st.integers(0, 3)] * rank)
    return st.builds(Box, lo, size)


def check(boxes: list[Box], space: Box) -> None:
    """Compare a verdict with the counts."""
    counts = count(boxes, space)
    inside = counts[tuple(slice(4, 4 + n) for n in space.size)]
    fault = find_fault(boxes, space)
    outside = counts.sum() - inside.sum()
    if fault is None:
        assert outside == 0
        assert (inside == 1).all()
        return
    if fault.kind == "outside":
        assert outside
        assert not space.contains(boxes[fault.first])
        return
    assert not outside
    part = counts[
        tuple(
            slice(a - s + 4, a - s + 4 + n)
            for a, n, s in zip(fault.box.lo, fault.box.size, space.lo, strict=True)
        )
    ]
    assert part.size
    if fault.kind == "gap":
        assert (part == 0).all()
        assert (inside <= 1).all()
        assert fault.missing == (inside == 0).sum()
    else:
        assert fault.first < fault.second
        assert boxes[fault.first].intersect(boxes[fault.second]) == fault.box


def test_a_pinwheel_that_no_cut_takes_apart() -> None:
    boxes = [
        Box((0, 0), (1, 2)),
        Box((0, 2), (2, 1)),
        Box((2, 1), (1, 2)),
        Box((1, 0), (2, 1)),
        Box((1, 1), (1, 1)),
    ]
    assert find_fault(boxes, Box.whole((3, 3))) is None
    assert find_fault(boxes[:4], Box.whole((3, 3))) == Fault("gap", boxes[4], missing=1)
    wider = [*boxes[:4], Box((1, 1), (1, 2))]
    assert find_overlap(wider) == Fault("overlap", Box((1, 2), (1, 1)), 1, 4)


@pytest.mark.parametrize("count", [0, 2])
def test_a_space_without_axes_is_one_element(count: int) -> None:
    fault = find_fault([Box((), ())] * count, Box((), ()))
    assert fault is not None
    assert fault.kind == ("gap" if count == 0 else "overlap")


def test_the_gap_of_a_large_cover_is_found_without_comparing_all_pairs() -> None:
    boxes = [Box((i, j), (1, 1)) for i in range(200) for j in range(200) if (i, j) != (77, 50)]
    fault = find_fault(boxes, Box.whole((200, 200)))
    assert fault == Fault("gap", Box((77, 50), (1, 1)), missing=1)
