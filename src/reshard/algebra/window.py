"""Windows: boxes of a stored tensor that are stored by themselves, as DCP and its kind do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.algebra.box import Box
from reshard.algebra.flat import cut
from reshard.algebra.piece import Piece, row_major
from reshard.algebra.term import Extent, Segment, Term, term_segments


@dataclass(frozen=True, slots=True)
class WindowPart:
    """What a window of a stored tensor holds of one atom.

    Args:  labels: of the sums on the way.  offset: address in the window of the first element.
           ranges: by axis, the half-open range `lo, size` that is held.
           strides: by axis, in elements of the window.
    """

    labels: tuple[str, ...]
    offset: int
    ranges: Mapping[str, tuple[int, int]]
    strides: Mapping[str, int]

    def piece(self, axes: tuple[str, ...], extents: Mapping[str, Extent]) -> Piece:
        """The affine piece over the axes of the atom; axes that are not strided are as they lie."""
        lo = tuple(self.ranges[a][0] if a in self.ranges else extents[a].lo for a in axes)
        size = tuple(self.ranges[a][1] if a in self.ranges else extents[a].size for a in axes)
        return Piece(Box(lo, size), self.offset, tuple(self.strides.get(a, 0) for a in axes))


def window_parts(
    dims: tuple[Term, ...],
    extents: Mapping[str, Extent],
    window: Box,
    strides: tuple[int, ...] | None = None,
) -> tuple[WindowPart, ...]:
    """Every atom that a window of a stored tensor holds.

    Args:  dims: one term per dimension of the stored tensor.  extents: for every axis.
           window: in elements of the stored tensor, padding included.
           strides: of the window as it is stored; row-major when None.
    Source: torch/distributed/checkpoint/metadata.py `ChunkStorageMetadata`.
    """
    steps = row_major(window.size) if strides is None else strides
    out = [WindowPart((), 0, {}, {})]
    for position, term in enumerate(dims):
        lo, size = window.lo[position], window.size[position]
        found = [
            item
            for segment in term_segments(term, extents)
            for item in _clip(segment, extents, lo, size, steps[position])
        ]
        out = [
            WindowPart(
                outer.labels + inner.labels,
                outer.offset + inner.offset,
                {**outer.ranges, **inner.ranges},
                {**outer.strides, **inner.strides},
            )
            for outer in out
            for inner in found
        ]
    return tuple(out)


def _clip(
    segment: Segment, extents: Mapping[str, Extent], lo: int, size: int, step: int
) -> list[WindowPart]:
    """The elements of a segment whose index in one dimension lies in `[lo, lo + size)`."""
    axes = tuple(axis for axis, _ in segment.strides)
    box = Box(tuple(extents[a].lo for a in axes), tuple(extents[a].size for a in axes))
    whole = Piece(box, segment.offset, tuple(stride for _, stride in segment.strides))
    return [
        WindowPart(
            segment.labels,
            (piece.offset - lo) * step,
            {
                axis: (start, count)
                for axis, start, count in zip(axes, piece.box.lo, piece.box.size, strict=True)
            },
            {axis: stride * step for axis, stride in segment.strides},
        )
        for piece in cut(whole, lo, lo + size)
    ]
