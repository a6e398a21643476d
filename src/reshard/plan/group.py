"""One whole tensor and every stored local tensor that holds some of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.algebra.term import Extent, stored_shape
from reshard.errors import layout_error
from reshard.plan.arrangement import Bound
from reshard.plan.catalog import LocalTensor


@dataclass(frozen=True, slots=True)
class Group:
    """Local tensors of all coordinates and states that together are one whole tensor.

    Args:  shaped: those with the shape of the parameter.  scalars: one number per parameter.
           atom_axes: by the labels of a segment, the axes of its atom.
    """

    bound: Bound
    shaped: tuple[LocalTensor, ...]
    scalars: tuple[LocalTensor, ...]
    atom_axes: Mapping[tuple[str, ...], tuple[str, ...]]

    def axis_size(self, axis: str) -> int:
        """Logical size of an axis."""
        return self.bound.axis_size(axis)

    def extents(self, tensor: LocalTensor, mesh: Mapping[str, int]) -> dict[str, Extent]:
        """What a local tensor holds of every axis.

        An axis that it holds whole may be stored with its padding or without, as the shape says.

        Raises: ReshardError[shape-mismatch].
        """
        coord = dict(tensor.coord)
        named = {axis: Extent(index, 1, 1) for axis, index in self.bound.positions.items()}
        shape: tuple[int, ...] = ()
        for padded in (True, False):
            out = {
                axis: cut.extent(coord, mesh, padded=padded)
                for axis, cut in self.bound.cuts.items()
            }
            out.update(named)
            shape = stored_shape(self.bound.dims, out)
            if shape == tensor.shape:
                return out
        raise layout_error(
            "shape-mismatch",
            f"`{tensor.name}` ({tensor.state}) has shape {list(tensor.shape)} "
            f"where the layout says {list(shape)}",
            notes=[f"in {tensor.file}"],
        )
