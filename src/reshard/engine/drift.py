"""How far the copies of an array are apart."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from reshard.engine.average import read_box
from reshard.engine.elements import (
    Elements,
    bits_dtype,
    max_difference,
    max_ulps,
    show_element,
    widened,
)
from reshard.engine.gather import Gatherer, blocks
from reshard.engine.locate import Place
from reshard.plan.plan import Array, Origin
from reshard.store.source_files import SourceFiles


@dataclass(frozen=True, slots=True)
class Apart:
    """Where the copies of an array are not the same.

    Args:  copies: of its most often stored element.  numel: elements that have copies.
           numel_different: of these, how many are not the same everywhere.
           max_abs, max_ulp: of any copy from the first one; None where it is not a number.
           first_index: flat in the array, of the first element in the order of the plan.
           values, places: of the first copy and of one that differs, there.
    """

    copies: int
    numel: int
    numel_different: int
    max_abs: float | None
    max_ulp: int | None
    first_index: int
    values: tuple[str, str]
    places: tuple[Place, Place]


def measure(array: Array, files: SourceFiles) -> Apart | None:
    """How far the copies of an array are apart; None if they are the same bit for bit.

    Raises: ReshardError[source-truncated | source-changed | source-unreadable].
    """
    gatherer = Gatherer(files)
    numel, different, most = 0, 0, 0
    largest: float | None = None
    steps: int | None = None
    first: tuple[int, tuple[str, str], tuple[Place, Place]] | None = None
    for copy in array.copies:
        if len(copy.origins) < 2:
            continue
        numel += copy.numel
        most = max(most, len(copy.origins))
        for lo, shape in blocks(copy.move.shape):
            seen = np.zeros(prod(shape), np.bool_)
            left = read_box(copy.origins[0], lo, shape, gatherer).reshape(-1)
            for other in copy.origins[1:]:
                right = read_box(other, lo, shape, gatherer).reshape(-1)
                where = _where(copy.origins[0], left, other, right)
                if not len(where):
                    continue
                seen[where] = True
                found = max_difference(left[where], right[where])
                if found is not None:
                    largest = found if largest is None else max(largest, found)
                ulps = max_ulps(left[where], right[where]) if left.dtype == right.dtype else None
                if ulps is not None:
                    steps = ulps if steps is None else max(steps, ulps)
                at = int(where[0])
                inside = np.unravel_index(at, shape) if shape else ()
                index = tuple(int(i) + x for i, x in zip(inside, lo, strict=True))
                address = copy.move.dst_offset + sum(
                    i * step for i, step in zip(index, copy.move.dst_strides, strict=True)
                )
                if first is None or address < first[0]:
                    values = show_element(left[at : at + 1]), show_element(right[at : at + 1])
                    places = _place(copy.origins[0], index), _place(other, index)
                    first = address, values, places
            different += int(np.count_nonzero(seen))
    if first is None:
        return None
    return Apart(most, numel, different, largest, steps, *first)


def _where(one: Origin, left: Elements, other: Origin, right: Elements) -> Elements:
    if one.dtype == other.dtype:
        bits = bits_dtype(one.dtype)
        return np.flatnonzero(left.view(bits) != right.view(bits))
    return np.flatnonzero(widened(left) != widened(right))


def _place(origin: Origin, index: tuple[int, ...]) -> Place:
    if origin.literal is not None:
        return Place(origin.file, None, origin.where)
    at = origin.move.src_offset + sum(
        i * step for i, step in zip(index, origin.move.src_strides, strict=True)
    )
    return Place(origin.file, origin.byte_offset + at * origin.itemsize, origin.where)
