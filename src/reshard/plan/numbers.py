"""The numbers that belong to whole parameters, such as the steps that an optimizer has done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece
from reshard.plan.arrangement import SCALAR, Atom


def number_segments(
    keys: Iterable[str], indices: Mapping[str, int], atoms: Mapping[str, Atom]
) -> tuple[tuple[str, Piece], ...]:
    """Where the one number of a parameter comes from: the number of every atom that it holds.

    An atom has a number for each index of the names that it was stored under; a parameter that
    holds several of them takes them all, and they must be equal.

    Args:  keys: of the parameter's atoms.  indices: of its own name.
    """
    out = []
    for key in dict.fromkeys(keys):
        atom = atoms.get(f"{key}{SCALAR}")
        if atom is None:
            continue
        lo = tuple(indices.get(axis, 0) for axis in atom.axes)
        size = tuple(
            1 if axis in indices else length
            for axis, length in zip(atom.axes, atom.shape, strict=True)
        )
        out.append((atom.key, Piece(Box(lo, size), 0, (0,) * len(lo))))
    return tuple(out)
