"""An arrangement: a catalog read through a layout.

Atoms, their stored parts, and the whole tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reshard.algebra.piece import Piece
from reshard.algebra.term import Extent, Term, stored_shape
from reshard.dtypes import DType
from reshard.language.layout import Layout
from reshard.plan.axes import AxisCut
from reshard.plan.catalog import Catalog, Coord, Fragment

AtomState = tuple[str, str]
"""(atom key, state kind)."""

SCALAR = "()"
"""What the key of an atom ends with that holds one number per parameter, not its elements."""


@dataclass(frozen=True, slots=True)
class Atom:
    """One logical tensor over named axes.

    Args:  key: the model's atom name, or the whole tensor's name (with `#label` for one part of a
           sum) in a layout without a model; a per-parameter number has SCALAR behind.
           axes, shape: equal length; logical elements, no padding.
    """

    key: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredPart:
    """What one local tensor stores of one state of one atom.

    Args:  piece: its box of the atom; addresses are elements of the local tensor.
           fragments: where those addresses lie, ascending by start; an address `x` of a fragment
                      is `x - start` elements behind its `byte_offset`.
           coord: where on the mesh it was found.
           replica: position on the mesh axes along which the local tensor is copied, not cut.
           whole: name of the whole tensor; its parts of one replica hold its box of the atom once.
           rule: index in the layout; the whole tensors of one rule hold the atom once.
    """

    piece: Piece
    dtype: DType
    fragments: tuple[Fragment, ...]
    coord: Coord
    replica: Coord
    whole: str
    rule: int


@dataclass(frozen=True, slots=True)
class Whole:
    """One tensor of the source as a mesh of one rank would have it: one of the universal form.

    Args:  name: with global indices.  shape: logical, no padding.
           segments: the atoms it holds, as pieces of the row-major whole tensor.
           axes: for each dimension, the names of its axes, as the layout writes them (for people).
    """

    name: str
    state: str
    shape: tuple[int, ...]
    dtype: DType
    segments: tuple[tuple[str, Piece], ...]
    axes: tuple[str, ...]
    rule: int  # index of the rule in the layout, -1 for a scalar


@dataclass(frozen=True, slots=True)
class Bound:
    """How one whole tensor follows its rule; enough to lay it out on another mesh.

    Args:  name: of the whole tensor.  rule: index in the layout.
           indices: global index per slot of the name.  captures: what its wildcards took.
           dims: one term per dimension, `...` written out.
           cuts: by axis, slots included, as the source is cut.
           atoms: by the labels of a segment, the key of its atom.
           coords: where the source holds some of it.
           held: by axis, the indices at which its atoms are there, if not at all (`plan.held`).
    """

    name: str
    rule: int
    indices: Mapping[str, int]
    captures: tuple[str, ...]
    dims: tuple[Term, ...]
    cuts: Mapping[str, AxisCut]
    atoms: Mapping[tuple[str, ...], str]
    coords: tuple[Coord, ...]
    held: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def positions(self) -> dict[str, int]:
        """Per slot of the name, the index in the atoms: its place among those that are there."""
        return {
            axis: self.held[axis].index(index) if axis in self.held else index
            for axis, index in self.indices.items()
        }

    def axis_size(self, axis: str) -> int:
        """Logical size of an axis of the atoms."""
        return len(self.held[axis]) if axis in self.held else self.cuts[axis].size

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape of the whole tensor."""
        return stored_shape(self.dims, self.whole_extents())

    def whole_extents(self) -> dict[str, Extent]:
        """Every axis whole and unpadded; a slot's axis at its index."""
        extents = {axis: Extent.whole(cut.size) for axis, cut in self.cuts.items()}
        extents.update({axis: Extent(index, 1, 1) for axis, index in self.positions.items()})
        return extents


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A whole source, understood.

    Args:  layout: through which it was read.  mesh: of the source.
           atoms: by key.  parts: by (atom key, state), in the order of the catalog.
           averaged: mesh axes whose copies are averaged, by the key of the atom.
           wholes: the universal tensors, in the order of the catalog.
           bound: by name of the whole tensor.
           values: sizes and facts of the model, by the names that the model uses; none without a
                   model.
    """

    catalog: Catalog
    layout: Layout
    mesh: Mapping[str, int]
    atoms: Mapping[str, Atom]
    parts: Mapping[AtomState, tuple[StoredPart, ...]]
    averaged: Mapping[str, tuple[str, ...]]
    wholes: tuple[Whole, ...]
    bound: Mapping[str, Bound]
    values: Mapping[str, object] = field(default_factory=dict)

    def states_of(self, name: str) -> tuple[str, ...]:
        """The state kinds that are stored of a whole tensor."""
        return tuple(item.state for item in self.wholes if item.name == name)
