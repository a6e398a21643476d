"""Whether boxes cover an index space exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from reshard.algebra.box import Box


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a cover is not exact.

    Args:  kind: "gap" (elements in no box), "overlap" (in two), or "outside" (of the space).
           box: some of the elements at fault.  first, second: indices of the boxes involved.
           missing: for a gap, how many elements are in no box.
    """

    kind: Literal["gap", "overlap", "outside"]
    box: Box
    first: int = -1
    second: int = -1
    missing: int = 0


def find_fault(boxes: Sequence[Box], space: Box) -> Fault | None:
    """A reason why the boxes are not an exact cover of the space, or None if they are.

    Args:  boxes: all over the axes of the space.
    """
    if len(boxes) == 1 and boxes[0] == space:
        return None
    for index, box in enumerate(boxes):
        if not space.contains(box):
            return Fault("outside", box, index)
    overlap = find_overlap(boxes)
    if overlap is not None:
        return overlap
    missing = space.volume - sum(box.volume for box in boxes)
    if missing:
        return Fault("gap", _gap([box for box in boxes if box.volume], space), missing=missing)
    return None


def find_overlap(boxes: Sequence[Box]) -> Fault | None:
    """Two boxes with a common element, or None.

    Boxes that meet on no axis are told apart by sorting, group by group; what no axis tells apart
    is swept.
    """
    todo = [[index for index, box in enumerate(boxes) if box.volume]]
    while todo:
        group = todo.pop()
        if len(group) < 2:
            continue
        parts = _apart(boxes, group)
        if parts is not None:
            todo.extend(parts)
            continue
        found = _sweep(boxes, group)
        if found is not None:
            return found
    return None


def _apart(boxes: Sequence[Box], group: list[int]) -> list[list[int]] | None:
    """The group as several that have no index of some axis in common; None if no axis does it."""
    for axis in range(len(boxes[group[0]].lo)):
        parts = [members for _, _, members in _runs(boxes, group, axis)]
        if len(parts) > 1:
            return parts
    return None


def _runs(
    boxes: Sequence[Box], group: Sequence[int], axis: int
) -> Iterator[tuple[int, int, list[int]]]:
    """Boxes that chain along an axis, each sharing indices with the next: (from, to, members)."""
    order = sorted(group, key=lambda index: boxes[index].lo[axis])
    start = stop = boxes[order[0]].lo[axis]
    members: list[int] = []
    for index in order:
        lo = boxes[index].lo[axis]
        if members and lo >= stop:
            yield start, stop, members
            start, members = lo, []
        members.append(index)
        stop = max(stop, lo + boxes[index].size[axis])
    yield start, stop, members


def _sweep(boxes: Sequence[Box], group: list[int]) -> Fault | None:
    rank = len(boxes[group[0]].lo)
    if rank == 0:
        return Fault("overlap", boxes[group[0]], min(group[:2]), max(group[:2]))
    axis = max(range(rank), key=lambda a: len({boxes[index].lo[a] for index in group}))
    active: list[int] = []
    for index in sorted(group, key=lambda i: boxes[i].lo[axis]):
        box = boxes[index]
        start = box.lo[axis]
        active = [i for i in active if boxes[i].lo[axis] + boxes[i].size[axis] > start]
        for other in active:
            common = boxes[other].intersect(box)
            if common is not None:
                return Fault("overlap", common, min(other, index), max(other, index))
        active.append(index)
    return None


def _gap(boxes: Sequence[Box], space: Box) -> Box:
    """Some elements that are in none of the disjoint boxes, which are not all of the space."""
    if not boxes:
        return space
    for axis in range(len(space.lo)):
        runs = list(_runs(boxes, range(len(boxes)), axis))
        at = space.lo[axis]
        for start, stop, _ in (*runs, (space.hi[axis], 0, ())):
            if start > at:
                return _slab(space, axis, at, start)
            at = stop
        if len(runs) == 1:
            continue
        for start, stop, members in runs:
            slab = _slab(space, axis, start, stop)
            held = [boxes[index] for index in members]
            if sum(box.volume for box in held) < slab.volume:
                return _gap(held, slab)
    rest = [space]
    for box in boxes:
        rest = [piece for left in rest for piece in left.subtract(box)]
    return min(rest, key=lambda piece: piece.lo)


def _slab(space: Box, axis: int, start: int, stop: int) -> Box:
    """The part of a space with these indices of one axis."""
    return Box(
        (*space.lo[:axis], start, *space.lo[axis + 1 :]),
        (*space.size[:axis], stop - start, *space.size[axis + 1 :]),
    )
