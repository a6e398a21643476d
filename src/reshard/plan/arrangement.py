"""An arrangement: a catalog read through a layout. Atoms, their stored parts, and the whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.algebra.piece import Piece
from reshard.dtypes import DType
from reshard.plan.catalog import Catalog, Coord

AtomState = tuple[str, str]
"""(atom key, state kind)."""


@dataclass(frozen=True, slots=True)
class Atom:
    """One logical tensor over named axes.

    Args:  key: the model's atom name, or the whole tensor's name (with `#label` for one part of a
           sum) in a layout without a model; a per-parameter scalar has `()` behind.
           axes, shape: equal length; logical elements, no padding.
    """

    key: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A stored run of one state of one atom.

    Args:  piece: its box; `piece.offset` counts elements from `byte_offset` and strides follow it.
           file: relative to the source's root.  byte_offset: absolute, of the element at offset 0.
           literal: the bytes, when they are no part of a file.
           coord: where on the mesh it was found.
           replica: position on the mesh axes along which this tensor is copied, not cut; parts of
                    one replica together make the atom once.
    """

    piece: Piece
    dtype: DType
    file: str
    byte_offset: int
    literal: bytes | None
    coord: Coord
    replica: Coord


@dataclass(frozen=True, slots=True)
class Whole:
    """One tensor of the source as it would be on a mesh of one rank: a tensor of the universal form.

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
class Arrangement:
    """A whole source, understood.

    Args:  atoms: by key.  parts: by (atom key, state), in the order of the catalog.
           averaged: atoms whose replicas are averaged instead of compared.
           wholes: the universal tensors, in the order of the catalog.
    """

    catalog: Catalog
    atoms: Mapping[str, Atom]
    parts: Mapping[AtomState, tuple[StoredPart, ...]]
    averaged: frozenset[str]
    wholes: tuple[Whole, ...]
    sizes: Mapping[str, int]

    def whole(self, name: str, state: str) -> Whole | None:
        """The whole tensor of this name and state kind, if there is one."""
        for item in self.wholes:
            if item.name == name and item.state == state:
                return item
        return None
