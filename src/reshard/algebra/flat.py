"""Flat ranges: the runs of a stored array that ZeRO and its kind cut without regard to shape."""

from __future__ import annotations

from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major


def flat_to_boxes(start: int, numel: int, shape: tuple[int, ...]) -> tuple[Box, ...]:
    """Cover a flat range of a row-major array with the fewest boxes.

    Args:  start, numel: in elements, inside the array.  shape: (d0, ..., dk), k >= 0.
    Returns: disjoint boxes in ascending flat order; at most 2k + 1 of them.
    Raises: ValueError if the range exceeds the array.
    Source: DeepSpeed ZeRO-1/2 partitions, deepspeed/utils/tensor_fragment.py `fragment_address`.
    """
    if start < 0 or numel < 0 or start + numel > prod(shape):
        raise ValueError(
            f"range [{start}, {start + numel}) exceeds an array of {prod(shape)} elements"
        )
    whole = Piece(Box.whole(shape), 0, row_major(shape))
    return tuple(piece.box for piece in cut(whole, start, start + numel))


def is_nested(piece: Piece) -> bool:
    """Whether the addresses of the piece are ordered as its axes by descending stride."""
    reach = 0
    for stride, size in sorted(zip(piece.strides, piece.box.size, strict=True)):
        if size <= 1:
            continue
        if stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


def cut(piece: Piece, start: int, stop: int) -> tuple[Piece, ...]:
    """The elements of a piece whose addresses lie in `[start, stop)`.

    Args:  piece: with nested strides (every row-major tensor, with its sums, pads, and blocks).
           start, stop: addresses, in elements of the stored array.
    Returns: disjoint pieces in ascending address order, at most 2k + 1 for k + 1 axes; offsets
             stay addresses of the same array.
    Raises: ValueError if the strides are not nested.
    """
    if piece.box.volume == 0:
        return ()
    first, last = piece.span
    if first >= start and last <= stop:
        return (piece,)
    if last <= start or first >= stop:
        return ()
    if not is_nested(piece):
        raise ValueError(f"strides {piece.strides} of {piece.box.size} are not nested")
    order = sorted(
        (axis for axis, size in enumerate(piece.box.size) if size > 1),
        key=lambda axis: -piece.strides[axis],
    )
    return tuple(_cut(piece, start, stop, tuple(order)))


def _cut(piece: Piece, start: int, stop: int, order: tuple[int, ...]) -> list[Piece]:
    first, last = piece.span
    if first >= start and last <= stop:
        return [piece]
    if last <= start or first >= stop:
        return []
    axis, inner = order[0], order[1:]
    stride, size = piece.strides[axis], piece.box.size[axis]
    width = last - first - stride * (size - 1)  # addresses touched by one index of this axis
    # Below `whole_from` an index may begin before `start`; from `whole_to` it may end after `stop`.
    touch_from = max(0, -(-(start - first - width + 1) // stride)) if start > first else 0
    whole_from = min(size, max(0, -(-(start - first) // stride)))
    whole_to = max(
        0, min(size, (stop - first - width) // stride + 1 if stop - first >= width else 0)
    )
    touch_to = min(size, max(0, -(-(stop - first) // stride)))
    out: list[Piece] = []
    if whole_from >= whole_to:
        for index in range(touch_from, touch_to):
            out += _cut(_slab(piece, axis, index, index + 1), start, stop, inner)
        return out
    for index in range(touch_from, whole_from):
        out += _cut(_slab(piece, axis, index, index + 1), start, stop, inner)
    out.append(_slab(piece, axis, whole_from, whole_to))
    for index in range(whole_to, touch_to):
        out += _cut(_slab(piece, axis, index, index + 1), start, stop, inner)
    return out


def _slab(piece: Piece, axis: int, start: int, stop: int) -> Piece:
    lo, size = list(piece.box.lo), list(piece.box.size)
    lo[axis] += start
    size[axis] = stop - start
    return piece.restrict(Box(tuple(lo), tuple(size)))
