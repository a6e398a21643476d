"""A piece: a box of an atom and the affine map that says where its elements are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import mul, sub

from reshard.algebra.box import Box

Shape = tuple[int, ...]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a dense row-major array, in elements."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class Piece:
    """The element `x` of `box` is stored at `offset + sum(strides[i] * (x[i] - box.lo[i]))`.

    Args:  box: over the axes of the atom.  offset: address of `box.lo`, in elements of the stored
           array.  strides: one per axis, in elements.
    """

    box: Box
    offset: int
    strides: tuple[int, ...]

    def at(self, lo: tuple[int, ...]) -> int:
        """The address of one element of the box."""
        steps: Iterator[int] = map(mul, self.strides, map(sub, lo, self.box.lo))
        return self.offset + sum(steps)

    def restrict(self, box: Box) -> Piece:
        """The same map over a box that lies inside this one."""
        return Piece(box, self.at(box.lo), self.strides)

    def shift(self, offset: int) -> Piece:
        """The same box stored `offset` elements further on."""
        return Piece(self.box, self.offset + offset, self.strides)

    @property
    def span(self) -> tuple[int, int]:
        """The half-open range of addresses that the piece touches; empty for an empty box."""
        if self.box.volume == 0:
            return self.offset, self.offset
        last = sum(s * (n - 1) for s, n in zip(self.strides, self.box.size, strict=True))
        return self.offset, self.offset + last + 1


@dataclass(frozen=True, slots=True)
class Move:
    """One strided copy: `shape` elements from one stored array to another.

    Args:  shape, src_strides, dst_strides: of equal length, in elements.
           src_offset, dst_offset: addresses of the first element, in elements.
    """

    shape: tuple[int, ...]
    src_offset: int
    src_strides: tuple[int, ...]
    dst_offset: int
    dst_strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements are moved."""
        return prod(self.shape)

    def restrict(self, box: Box) -> Move:
        """The copy of a box of these elements alone; axes of size 1 go.

        Args:  box: inside `shape`.
        """
        if box.size == self.shape:
            return self
        kept = [axis for axis, size in enumerate(box.size) if size != 1]
        return Move(
            tuple(box.size[axis] for axis in kept),
            self.src_offset + sum(map(mul, box.lo, self.src_strides)),
            tuple(self.src_strides[axis] for axis in kept),
            self.dst_offset + sum(map(mul, box.lo, self.dst_strides)),
            tuple(self.dst_strides[axis] for axis in kept),
        )

    def reroot(self, start: int) -> Move:
        """The same copy, with source addresses that count from `start`."""
        if start == 0:
            return self
        return Move(
            self.shape, self.src_offset - start, self.src_strides, self.dst_offset, self.dst_strides
        )


def join(src: Piece, dst: Piece) -> Move | None:
    """The copy of the elements that both pieces hold, or None when they have none in common."""
    box = src.box.intersect(dst.box)
    return None if box is None else moves(box, (src,), dst)[0]


def moves(box: Box, sources: Sequence[Piece], dst: Piece) -> tuple[Move, ...]:
    """The copies of one box from several places that all hold it, each with the fewest axes.

    All have the same shape and the same destination: axes of size 1 go, and two axes become one
    where the destination and every source step through them as if they were one. Axes are ordered
    by descending destination stride.

    Args:  box: inside the box of every piece.
    """
    shape, steps = _merged(box.size, dst.strides, tuple([source.strides for source in sources]))
    dst_offset = dst.at(box.lo)
    return tuple(
        [
            Move(shape, source.at(box.lo), strides, dst_offset, steps[0])
            for source, strides in zip(sources, steps[1:], strict=True)
        ]
    )


@lru_cache(maxsize=1 << 14)
def _merged(box: Shape, dst: Shape, sources: tuple[Shape, ...]) -> tuple[Shape, tuple[Shape, ...]]:
    """The fewest axes of a box, and the strides along them: of the destination, and each source.

    Args:  box: its size.  dst, sources: strides along its axes.
    """
    axes = [axis for axis, size in enumerate(box) if size != 1]
    axes.sort(key=lambda axis: (-dst[axis], -sources[0][axis]))
    sizes: list[int] = []
    steps: list[list[int]] = []  # per merged axis: the destination stride, then one per source
    for axis in axes:
        size = box[axis]
        step = [dst[axis], *(strides[axis] for strides in sources)]
        if steps and all(
            outer == inner * size for outer, inner in zip(steps[-1], step, strict=True)
        ):
            steps[-1] = step
            sizes[-1] *= size
        else:
            steps.append(step)
            sizes.append(size)
    by_place = tuple(tuple(step[i] for step in steps) for i in range(len(sources) + 1))
    return tuple(sizes), by_place
