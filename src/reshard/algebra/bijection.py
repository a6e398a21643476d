"""Whether a stored tensor's terms map its elements one to one onto those of its atoms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reshard.algebra.term import Extent, Term, segments, term_axes

AxisFaultKind = Literal["missing", "twice", "foreign", "mesh"]


@dataclass(frozen=True, slots=True)
class AxisFault:
    """Why the map is not one to one.

    Args:  kind: "missing" (an axis of the atom is neither in the name nor in the shape), "twice"
           (it stands there more than once), "foreign" (the atom has no such axis), or "mesh" (two
           axes of the atom are cut over one mesh axis).
           axis: the axis, or the mesh axis.  labels: of the segment that holds the atom.
    """

    kind: AxisFaultKind
    axis: str
    labels: tuple[str, ...]


def find_axis_fault(
    dims: tuple[Term, ...],
    named: tuple[str, ...],
    atom_axes: Mapping[tuple[str, ...], tuple[str, ...]],
    over: Mapping[str, tuple[str, ...]],
) -> AxisFault | None:
    """The first reason why the map is not one to one, or None.

    It is one to one, padding apart, if every axis of each atom is used exactly once, in the name or
    in the shape, and no mesh axis cuts two of them: then a stored element tells the index of every
    axis, and those indices tell the rank, the name, and the address.

    Args:  dims: one term per dimension.  named: the axes of the name's slots.
           atom_axes: by the labels of every segment of the terms, the axes of its atom.
           over: by axis, the mesh axes that cut it.
    """
    unit = {axis: Extent(0, 1, 1) for term in dims for axis in term_axes(term)}
    for segment in segments(dims, unit):
        axes = atom_axes[segment.labels]
        uses = Counter((*named, *(axis for axis, _ in segment.strides)))
        for axis, count in uses.items():
            if axis not in axes:
                return AxisFault("foreign", axis, segment.labels)
            if count > 1:
                return AxisFault("twice", axis, segment.labels)
        for axis in axes:
            if axis not in uses:
                return AxisFault("missing", axis, segment.labels)
        cut = Counter(mesh for axis in axes for mesh in over.get(axis, ()))
        for mesh, count in cut.items():
            if count > 1:
                return AxisFault("mesh", mesh, segment.labels)
    return None
