"""Copies from local tensors as copies from the fragments that they are stored in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from reshard.algebra.box import Box
from reshard.algebra.flat import cut
from reshard.algebra.piece import Move, Piece
from reshard.plan.catalog import Fragment

Place = tuple[Fragment, Move]
"""A fragment, and a copy whose source addresses count from the fragment's first element."""


class FragmentRuns:
    """The fragments of one local tensor, found by address.

    Args:  fragments: disjoint, ascending by start.
    """

    __slots__ = ("_starts", "fragments", "has_upper")

    def __init__(self, fragments: tuple[Fragment, ...]) -> None:
        self.fragments = fragments
        self.has_upper = any(fragment.upper is not None for fragment in fragments)
        self._starts: list[int] | None = None

    def only(self, move: Move) -> Fragment | None:
        """The fragment that holds all that is moved; None if the move must be cut."""
        if len(self.fragments) > 1:
            return None
        fragment = self.fragments[0]
        if fragment.strides is not None:  # addresses may exceed what such a fragment holds
            return fragment
        start, stop = _span(move)
        inside = fragment.start <= start and stop <= fragment.start + fragment.numel
        return fragment if inside else None

    def near(self, start: int, stop: int) -> Sequence[Fragment]:
        """The fragments that may hold addresses in `[start, stop)`."""
        if self._starts is None:
            self._starts = [fragment.start for fragment in self.fragments]
        first = max(0, bisect_right(self._starts, start) - 1)
        return self.fragments[first : bisect_left(self._starts, stop)]

    def holding(self, move: Move) -> Iterator[Fragment]:
        """The fragments that hold something of what is moved."""
        fragment = self.only(move)
        if fragment is not None:
            yield fragment
            return
        span = _span(move)
        is_dense = span[1] - span[0] == move.numel
        whole = Piece(Box.whole(move.shape), move.src_offset, move.src_strides)
        for fragment in self.near(*span):
            start, stop = fragment.start, fragment.start + fragment.numel
            meets = start < stop and start < span[1] and stop > span[0]
            if meets and (is_dense or cut(whole, start, stop)):
                yield fragment

    def boxes(self, move: Move) -> Iterator[tuple[Fragment, Box]]:
        """The boxes of a move that lie in one fragment each."""
        box = Box.whole(move.shape)
        fragment = self.only(move)
        if fragment is not None:
            yield fragment, box
            return
        whole = Piece(box, move.src_offset, move.src_strides)
        for fragment in self.near(*whole.span):
            for piece in cut(whole, fragment.start, fragment.start + fragment.numel):
                yield fragment, piece.box


def place_moves(runs: Sequence[FragmentRuns], moves: Sequence[Move]) -> list[tuple[Place, ...]]:
    """The copies of one box from several local tensors that all hold it, cut at their fragments.

    Args:  runs, moves: one per local tensor; the moves have the same shape and destination.
    Returns: for each part of the box, a place in every local tensor.
    """
    if len(moves) == 1:
        fragment = runs[0].only(moves[0])
        if fragment is not None:
            return [((fragment, moves[0].reroot(fragment.start)),)]
        if moves[0].src_strides in ((), (1,)):
            return [(place,) for place in _line(runs[0], moves[0])]
    todo: list[tuple[tuple[Fragment, ...], tuple[Move, ...]]] = [((), tuple(moves))]
    for index in range(len(moves)):
        todo = [
            ((*found, fragment), tuple(move.restrict(box) for move in parts))
            for found, parts in todo
            for fragment, box in runs[index].boxes(parts[index])
        ]
    return [
        tuple(
            (fragment, move.reroot(fragment.start))
            for fragment, move in zip(found, parts, strict=True)
        )
        for found, parts in todo
    ]


def _line(runs: FragmentRuns, move: Move) -> Iterator[Place]:
    """The places of elements that follow each other in one local tensor."""
    first = move.src_offset
    stop = first + move.numel
    step = move.dst_strides[0] if move.dst_strides else 1
    for fragment in runs.near(first, stop):
        start = fragment.start
        end = start + fragment.numel
        lo = start if start > first else first
        hi = end if end < stop else stop
        if hi - lo > 1:
            dst = move.dst_offset + (lo - first) * step
            yield fragment, Move((hi - lo,), lo - start, move.src_strides, dst, move.dst_strides)
        elif hi - lo == 1:
            yield fragment, Move((), lo - start, (), move.dst_offset + (lo - first) * step, ())


def _span(move: Move) -> tuple[int, int]:
    """The half-open range of source addresses."""
    last = sum(step * (size - 1) for step, size in zip(move.src_strides, move.shape, strict=True))
    return move.src_offset, move.src_offset + last + 1
