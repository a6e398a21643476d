"""Half-open hyperrectangles in the index space of an atom."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Box:
    """The elements `lo[i] <= x[i] < lo[i] + size[i]`.

    Args:  lo, size: one entry per axis, in elements, both >= 0.  Rank 0 is one element.
    """

    lo: tuple[int, ...]
    size: tuple[int, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        """The box of every element of an array of this shape."""
        return Box((0,) * len(shape), shape)

    @property
    def volume(self) -> int:
        """How many elements the box holds."""
        return prod(self.size)

    @property
    def hi(self) -> tuple[int, ...]:
        """The exclusive upper corner."""
        return tuple(a + n for a, n in zip(self.lo, self.size, strict=True))

    def intersect(self, other: Box) -> Box | None:
        """The common elements, or None when there are none."""
        lo = []
        size = []
        for a, n, b, m in zip(self.lo, self.size, other.lo, other.size, strict=True):
            start = a if a > b else b
            stop = a + n if a + n < b + m else b + m
            if stop <= start:
                return None
            lo.append(start)
            size.append(stop - start)
        return Box(tuple(lo), tuple(size))

    def contains(self, other: Box) -> bool:
        """Whether every element of `other` is in this box (an empty box is in any)."""
        return other.volume == 0 or self.intersect(other) == other

    def subtract(self, other: Box) -> tuple[Box, ...]:
        """The elements that are not in `other`, as at most two boxes per axis."""
        common = self.intersect(other)
        if common is None:
            return (self,) if self.volume else ()
        out: list[Box] = []
        lo, size = list(self.lo), list(self.size)
        for axis in range(len(lo)):
            before = common.lo[axis] - lo[axis]
            after = lo[axis] + size[axis] - common.lo[axis] - common.size[axis]
            if before:
                out.append(Box(tuple(lo), (*size[:axis], before, *size[axis + 1 :])))
            if after:
                start = common.lo[axis] + common.size[axis]
                out.append(
                    Box(
                        (*lo[:axis], start, *lo[axis + 1 :]),
                        (*size[:axis], after, *size[axis + 1 :]),
                    )
                )
            lo[axis], size[axis] = common.lo[axis], common.size[axis]
        return tuple(out)
