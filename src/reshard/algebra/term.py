"""Terms: how the axes of atoms make up one dimension of a stored tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major


@dataclass(frozen=True, slots=True)
class Leaf:
    """One axis."""

    axis: str


@dataclass(frozen=True, slots=True)
class Product:
    """Several terms flattened row-major, the first one slowest; an empty product has size 1."""

    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One summand; its label names the atom (or the part of the tensor) that it holds."""

    label: str
    term: Term


@dataclass(frozen=True, slots=True)
class Sum:
    """Labelled terms one behind the other."""

    parts: tuple[Part, ...]


Term = Leaf | Product | Sum


@dataclass(frozen=True, slots=True)
class Extent:
    """What one stored tensor holds of one axis.

    Args:  lo, size: the half-open range `[lo, lo + size)` of the axis, in elements.
           stored: elements it takes in the stored tensor, >= size; the rest is padding behind.
    """

    lo: int
    size: int
    stored: int

    @staticmethod
    def whole(size: int) -> Extent:
        """All of an axis, without padding."""
        return Extent(0, size, size)


@dataclass(frozen=True, slots=True)
class Segment:
    """What a stored tensor holds of one atom.

    Args:  labels: the labels of the sums on the way, outermost first; () for a tensor of one atom.
           offset: address of its first element.  strides: per axis name, in elements.
    """

    labels: tuple[str, ...]
    offset: int
    strides: tuple[tuple[str, int], ...]


def term_size(term: Term, extents: Mapping[str, Extent]) -> int:
    """Stored elements of a term, padding included."""
    if isinstance(term, Leaf):
        return extents[term.axis].stored
    if isinstance(term, Product):
        return prod(term_size(inner, extents) for inner in term.terms)
    return sum(term_size(part.term, extents) for part in term.parts)


def term_axes(term: Term) -> tuple[str, ...]:
    """Every axis of a term, in order of appearance."""
    if isinstance(term, Leaf):
        return (term.axis,)
    if isinstance(term, Product):
        return tuple(axis for inner in term.terms for axis in term_axes(inner))
    return tuple(axis for part in term.parts for axis in term_axes(part.term))


def stored_shape(dims: tuple[Term, ...], extents: Mapping[str, Extent]) -> tuple[int, ...]:
    """The shape of a stored tensor, one entry per dimension."""
    return tuple(term_size(term, extents) for term in dims)


def segments(
    dims: tuple[Term, ...],
    extents: Mapping[str, Extent],
    dim_strides: tuple[int, ...] | None = None,
) -> tuple[Segment, ...]:
    """Every atom that a stored tensor holds, with its affine map.

    Args:  dims: one term per dimension.  extents: for every axis that appears.
           dim_strides: element strides of the stored tensor; row-major when None.
    """
    shape = stored_shape(dims, extents)
    strides = row_major(shape) if dim_strides is None else dim_strides
    out = [Segment((), 0, ())]
    for term, stride in zip(dims, strides, strict=True):
        inner = _scaled(term_segments(term, extents), stride)
        out = [_combine(outer, item) for outer in out for item in inner]
    return tuple(out)


def term_segments(term: Term, extents: Mapping[str, Extent]) -> list[Segment]:
    """Every atom that one dimension holds; addresses are indices in that dimension."""
    if isinstance(term, Leaf):
        return [Segment((), 0, ((term.axis, 1),))]
    if isinstance(term, Product):
        out = [Segment((), 0, ())]
        step = prod(term_size(inner, extents) for inner in term.terms)
        for inner in term.terms:
            size = term_size(inner, extents)
            step = step // size if size else 0
            out = [
                _combine(outer, item)
                for outer in out
                for item in _scaled(term_segments(inner, extents), step)
            ]
        return out
    out = []
    at = 0
    for part in term.parts:
        for item in term_segments(part.term, extents):
            out.append(Segment((part.label, *item.labels), at + item.offset, item.strides))
        at += term_size(part.term, extents)
    return out


def _scaled(items: list[Segment], stride: int) -> list[Segment]:
    return [
        Segment(item.labels, item.offset * stride, tuple((a, s * stride) for a, s in item.strides))
        for item in items
    ]


def _combine(outer: Segment, inner: Segment) -> Segment:
    return Segment(
        outer.labels + inner.labels, outer.offset + inner.offset, outer.strides + inner.strides
    )


def segment_piece(segment: Segment, axes: tuple[str, ...], extents: Mapping[str, Extent]) -> Piece:
    """The affine piece of a segment over the axes of its atom, in the atom's own order.

    An axis that the segment does not stride through (it is in the name, or on the mesh) must have
    an extent of size 1.
    """
    strides = dict(segment.strides)
    box = Box(tuple(extents[a].lo for a in axes), tuple(extents[a].size for a in axes))
    return Piece(box, segment.offset, tuple(strides.get(a, 0) for a in axes))
