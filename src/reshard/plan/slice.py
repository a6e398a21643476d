"""A box of a whole tensor, as an array of its own: what a reader of slices asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from reshard.algebra.box import Box
from reshard.algebra.flat import cut
from reshard.algebra.partition import Share
from reshard.algebra.piece import Piece, row_major
from reshard.plan.arrangement import Whole
from reshard.plan.plan import ArraySpec


def slice_spec(whole: Whole, box: Box) -> ArraySpec:
    """The dense array of the elements of a whole tensor that lie in a box.

    Args:  box: over the dimensions of the whole tensor, inside its shape.
    """
    segments = boxed(whole, box, 0, row_major(box.size))
    return ArraySpec(whole.name, whole.state, whole.dtype, box.volume, segments, box.size)


def boxed(
    whole: Whole, box: Box, offset: int, strides: tuple[int, ...]
) -> tuple[tuple[str, Piece], ...]:
    """The elements of a whole tensor that lie in a box, as they lie in another array.

    Args:  box: over the dimensions of the whole tensor.
           offset, strides: where the box lies in the array, and what a step along each dimension is
           there, in elements.
    """
    return tuple(
        (key, held.shift(offset))
        for key, piece in whole.segments
        for held in _held(piece, whole.shape, box, strides)
    )


def _held(piece: Piece, shape: tuple[int, ...], box: Box, inner: tuple[int, ...]) -> list[Piece]:
    """What the box has of one piece, addressed in an array of these strides."""
    if not piece.box.volume or not box.volume:
        return []
    outer = row_major(shape)
    if box.size == shape and inner == outer:
        return [piece]
    choices = []
    for dim, (step, length) in enumerate(zip(outer, shape, strict=True)):
        axes = [a for a in range(len(piece.strides)) if _dim_of(piece, a, outer, shape) == dim]
        within = Piece(
            Box(
                tuple(piece.box.lo[a] for a in axes),
                tuple(piece.box.size[a] for a in axes),
            ),
            piece.offset // step % length,
            tuple(piece.strides[a] // step for a in axes),
        )
        found = cut(within, box.lo[dim], box.lo[dim] + box.size[dim])
        choices.append([(axes, item) for item in found])
    out = []
    for chosen in product(*choices):
        lo, size = list(piece.box.lo), list(piece.box.size)
        strides = [0] * len(piece.strides)
        offset = 0
        for dim, (axes, item) in enumerate(chosen):
            offset += (item.offset - box.lo[dim]) * inner[dim]
            for position, axis in enumerate(axes):
                lo[axis], size[axis] = item.box.lo[position], item.box.size[position]
                strides[axis] = item.strides[position] * inner[dim]
        out.append(Piece(Box(tuple(lo), tuple(size)), offset, tuple(strides)))
    return out


def _dim_of(piece: Piece, axis: int, outer: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The dimension that an axis runs along; -1 for one of a single index, which does not run."""
    stride, size = piece.strides[axis], piece.box.size[axis]
    if size == 1:
        return -1
    return next(
        dim
        for dim, (step, length) in enumerate(zip(outer, shape, strict=True))
        if stride >= step and stride % step == 0 and stride // step * (size - 1) < length
    )


def flat_range(
    segments: Iterable[tuple[str, Piece]], start: int, numel: int, at: int = 0
) -> tuple[tuple[str, Piece], ...]:
    """Some elements of a flat array, as they lie in another one.

    Args:  segments: of the array.  start, numel: which elements.  at: where they lie in the other.
    """
    return tuple(
        (key, part.shift(at - start))
        for key, piece in segments
        for part in cut(piece, start, start + numel)
    )


def in_shares(
    segments: Sequence[tuple[str, Piece]], shares: Iterable[Share]
) -> tuple[tuple[str, Piece], ...]:
    """The elements of a flat tensor that lie in shares, where the ranks' arrays hold them."""
    ranges = (flat_range(segments, share.start, share.numel, share.offset) for share in shares)
    return tuple(item for part in ranges for item in part)
