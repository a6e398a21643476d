"""A piece: a box of an atom and the affine map that says where its elements are stored."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from reshard.algebra.box import Box


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
        return self.offset + sum(
            s * (x - a) for s, x, a in zip(self.strides, lo, self.box.lo, strict=True)
        )

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


def join(src: Piece, dst: Piece) -> Move | None:
    """The copy of the elements that both pieces hold, or None when they have none in common."""
    box = src.box.intersect(dst.box)
    if box is None:
        return None
    return merge_axes(Move(box.size, src.at(box.lo), src.strides, dst.at(box.lo), dst.strides))


def merge_axes(move: Move) -> Move:
    """The same copy with the fewest axes, ordered by descending destination stride.

    Axes of size 1 go; two axes become one where both sides step through them as if they were one.
    """
    axes = sorted(
        (
            (dst, src, size)
            for size, src, dst in zip(move.shape, move.src_strides, move.dst_strides, strict=True)
            if size != 1
        ),
        key=lambda axis: (-axis[0], -axis[1]),
    )
    merged: list[tuple[int, int, int]] = []
    for dst, src, size in axes:
        if merged:
            outer_dst, outer_src, outer_size = merged[-1]
            if outer_dst == dst * size and outer_src == src * size:
                merged[-1] = (dst, src, outer_size * size)
                continue
        merged.append((dst, src, size))
    return Move(
        tuple(size for _, _, size in merged),
        move.src_offset,
        tuple(src for _, src, _ in merged),
        move.dst_offset,
        tuple(dst for dst, _, _ in merged),
    )
