"""One whole tensor and every stored local tensor that holds some of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.algebra.term import Extent
from reshard.plan.arrangement import Bound
from reshard.plan.catalog import LocalTensor


@dataclass(frozen=True, slots=True)
class Group:
    """Local tensors of all coordinates and states that together are one whole tensor.

    Args:  shaped: those with the shape of the parameter.  scalars: one number per parameter.
           atom_axes: by the labels of a segment, the axes of its atom.
           slot_sizes: by axis of a name's slot, its global size.
    """

    bound: Bound
    shaped: tuple[LocalTensor, ...]
    scalars: tuple[LocalTensor, ...]
    atom_axes: Mapping[tuple[str, ...], tuple[str, ...]]
    slot_sizes: Mapping[str, int]

    def axis_size(self, axis: str) -> int:
        """Logical size of an axis."""
        if axis in self.bound.cuts:
            return self.bound.cuts[axis].size
        return self.slot_sizes[axis]

    def extents(
        self, tensor: LocalTensor, coord: Mapping[str, int], mesh: Mapping[str, int]
    ) -> dict[str, Extent]:
        """What a local tensor holds of every axis."""
        out = {axis: cut.extent(coord, mesh) for axis, cut in self.bound.cuts.items()}
        out.update({axis: Extent(index, 1, 1) for axis, index in self.bound.indices.items()})
        return out
