"""Whether boxes cover an index space exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reshard.algebra.box import Box


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a cover is not exact.

    Args:  kind: "gap" (elements in no box), "overlap" (in two), or "outside" (of the space).
           box: some of the elements at fault.  first, second: indices of the boxes involved.
           missing: for a gap, how many elements are in no box.
    """

    kind: str
    box: Box
    first: int = -1
    second: int = -1
    missing: int = 0


def find_fault(boxes: Sequence[Box], shape: tuple[int, ...]) -> Fault | None:
    """The first reason why the boxes are not an exact cover of the space, or None if they are."""
    space = Box.whole(shape)
    for index, box in enumerate(boxes):
        if not space.contains(box):
            return Fault("outside", box, index)
    overlap = find_overlap(boxes)
    if overlap is not None:
        return overlap
    held = sum(box.volume for box in boxes)
    if held != space.volume:
        return Fault("gap", _first_gap(boxes, space), missing=space.volume - held)
    return None


def find_overlap(boxes: Sequence[Box]) -> Fault | None:
    """Two boxes with a common element, or None.

    A sweep over the axis along which the boxes are cut most: boxes that cannot meet there are not
    compared.
    """
    live = [index for index, box in enumerate(boxes) if box.volume]
    if len(live) < 2:
        return None
    rank = len(boxes[live[0]].lo)
    if rank == 0:
        return Fault("overlap", boxes[live[0]], live[0], live[1])
    axis = max(range(rank), key=lambda a: len({boxes[i].lo[a] for i in live}))
    live.sort(key=lambda index: boxes[index].lo[axis])
    active: list[int] = []
    for index in live:
        box = boxes[index]
        start = box.lo[axis]
        active = [i for i in active if boxes[i].lo[axis] + boxes[i].size[axis] > start]
        for other in active:
            common = boxes[other].intersect(box)
            if common is not None:
                return Fault("overlap", common, min(other, index), max(other, index))
        active.append(index)
    return None


def _first_gap(boxes: Sequence[Box], space: Box) -> Box:
    rest = [space] if space.volume else []
    for box in boxes:
        rest = [piece for left in rest for piece in left.subtract(box)]
    return min(rest, key=lambda piece: piece.lo)
