"""The oracle: what layouts mean, found element by element, with none of the algebra.

A tensor is a list of its elements in row-major order; each element is the atom that it belongs to
and the index of every axis, or None for padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from reshard.algebra.term import Extent, Leaf, Product, Term
from reshard.plan.plan import Array

Element = tuple[tuple[str, ...], dict[str, int]] | None
"""The labels on the way to an atom, and the index of every axis; None for padding."""

PAD = -7
"""What padding holds: no element of any atom."""


def term_elements(term: Term, extents: Mapping[str, Extent]) -> list[Element]:
    """The elements along one dimension."""
    if isinstance(term, Leaf):
        held = extents[term.axis]
        real: list[Element] = [((), {term.axis: held.lo + i}) for i in range(held.size)]
        return real + [None] * (held.stored - held.size)
    if isinstance(term, Product):
        return combine(term_elements(inner, extents) for inner in term.terms)
    out: list[Element] = []
    for part in term.parts:
        for item in term_elements(part.term, extents):
            out.append(item and ((part.label, *item[0]), item[1]))
    return out


def combine(lists: Iterable[list[Element]]) -> list[Element]:
    """Every combination, the first list slowest."""
    out: list[Element] = []
    for items in product(*lists):
        if any(item is None for item in items):
            out.append(None)
        else:
            known = [item for item in items if item is not None]
            labels = tuple(label for item in known for label in item[0])
            out.append((labels, {axis: i for item in known for axis, i in item[1].items()}))
    return out


def tensor_elements(dims: Iterable[Term], extents: Mapping[str, Extent]) -> list[Element]:
    """The elements of a stored tensor."""
    return combine(term_elements(term, extents) for term in dims)


def box_indices(lo: tuple[int, ...], size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every index of a box."""
    return product(*(range(a, a + n) for a, n in zip(lo, size, strict=True)))


def addresses(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """The address of every element of a strided array, as an array of that shape."""
    out = np.full(shape, offset)
    for axis, (size, step) in enumerate(zip(shape, strides, strict=True)):
        out += (np.arange(size) * step).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return out


def fill(array: Array, files: Mapping[str, bytes], dtype: Any) -> Any:
    """An array as its copies make it, naively; padding is PAD.

    Every element must be written at most once, and places that should agree must.
    """
    out = np.full(array.spec.numel, PAD, dtype)
    written = np.zeros(array.spec.numel, int)
    for copy in array.copies:
        first = None
        for origin in copy.origins:
            move = origin.move
            data = files[origin.file] if origin.literal is None else origin.literal
            stored = data[origin.byte_offset :]
            stored = stored[: len(stored) // dtype().itemsize * dtype().itemsize]
            at = addresses(move.src_offset, move.shape, move.src_strides).reshape(-1)
            values = np.frombuffer(stored, dtype)[at]
            assert first is None or copy.mode != "agree" or first.tobytes() == values.tobytes()
            first = values if first is None else first
            to = addresses(move.dst_offset, move.shape, move.dst_strides).reshape(-1)
            assert (move.shape, move.dst_offset) == (copy.move.shape, copy.move.dst_offset)
        out[to] = first
        np.add.at(written, to, 1)
    assert written.max(initial=0) <= 1, "an element is written twice"
    assert ((written == 0) == (out == PAD)).all(), "padding was copied"
    return out
