"""Reads a catalog through a layout: which stored run holds which elements of which atom."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.algebra.box import Box
from reshard.algebra.flat import cut
from reshard.algebra.piece import Piece, row_major
from reshard.algebra.term import segment_piece, segments
from reshard.algebra.window import window_parts
from reshard.errors import Diagnostic, Exit, ReshardError, layout_error
from reshard.language.expression import evaluate
from reshard.language.layout import Layout
from reshard.plan.arrangement import Arrangement, Atom, AtomState, Bound, StoredPart, Whole
from reshard.plan.bind_free import bind_free
from reshard.plan.bind_model import bind_model
from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor
from reshard.plan.environment import environment
from reshard.plan.group import Group
from reshard.plan.matching import match_tensors
from reshard.plan.show import show_term

EXTRA = "extra"
"""State kind of tensors that belong to no parameter (RNG states and the like); no rule applies."""


def bind(
    layout: Layout, catalog: Catalog, *, settings: Mapping[str, int] | None = None
) -> Arrangement:
    """The arrangement of a catalog under a layout.

    Args:  settings: sizes that the user states (`--set`); they win over everything else.
    Raises: ReshardError[mesh-mismatch | unmatched-tensor | ambiguous-rule | unused-rule |
            shape-mismatch | uneven-split | unsolvable-size | missing-block | state-shape |
            dtype-mismatch].
    """
    mesh = _mesh(layout, catalog)
    env = environment(layout, catalog, mesh, settings or {})
    matched = match_tensors(layout, (t for t in catalog.tensors if t.state != EXTRA), env)
    groups = (
        bind_free(layout, matched, mesh, env)
        if layout.model is None
        else bind_model(layout, matched, mesh, env)
    )
    builder = _Builder(layout, catalog, mesh)
    for group in groups:
        builder.add(group)
    for tensor in catalog.tensors:
        if tensor.state == EXTRA:
            builder.add_extra(tensor)
    return builder.finish()


def _mesh(layout: Layout, catalog: Catalog) -> dict[str, int]:
    mesh = dict(catalog.mesh)
    for axis, size in layout.mesh.items():
        if size is None:
            continue
        stated = evaluate(size, dict(mesh))
        if axis in mesh and mesh[axis] != stated:
            raise layout_error(
                "mesh-mismatch",
                f"layout `{layout.name}` says {axis}={stated}, "
                f"the checkpoint has {axis}={mesh[axis]}",
                notes=[f"checkpoint: {catalog.root}"],
                helps=[f"correct the layout's `mesh` line, or leave the size of `{axis}` out"],
            )
        if isinstance(stated, int):
            mesh[axis] = stated
    return mesh


class _Builder:
    """Collects atoms, parts, and whole tensors."""

    def __init__(self, layout: Layout, catalog: Catalog, mesh: Mapping[str, int]) -> None:
        self._layout = layout
        self._catalog = catalog
        self._mesh = mesh
        self._atoms: dict[str, Atom] = {}
        self._parts: dict[AtomState, list[StoredPart]] = {}
        self._averaged: dict[str, tuple[str, ...]] = {}
        self._bound: dict[str, Bound] = {}
        self._wholes: dict[tuple[str, str], Whole] = {}
        self._scalars: set[tuple[str, str]] = set()
        self._problems: list[Diagnostic] = []

    def add(self, group: Group) -> None:
        """One whole tensor with all of its stored local tensors, of every state."""
        self._bound[group.bound.name] = group.bound
        rule = self._layout.rules[group.bound.rule]
        for labels, key in group.bound.atoms.items():
            axes = group.atom_axes[labels]
            shape = tuple(group.axis_size(axis) for axis in axes)
            self._atoms[key] = Atom(key, axes, shape)
            if rule.averaged_over:
                self._averaged[key] = rule.averaged_over
        for tensor in group.shaped:
            self._shaped(group, tensor)
        for tensor in group.scalars:
            self._scalar(group, tensor)

    def add_extra(self, tensor: LocalTensor) -> None:
        """A tensor that belongs to no parameter; it is its own atom."""
        key = f"{EXTRA}:{tensor.name}"
        axes = tuple(f"_{i}" for i in range(len(tensor.shape)))
        self._atoms[key] = Atom(key, axes, tensor.shape)
        whole = Piece(Box.whole(tensor.shape), 0, row_major(tensor.shape))
        self._store(key, tensor, whole, ())
        self._wholes[tensor.name, EXTRA] = Whole(
            tensor.name, EXTRA, tensor.shape, tensor.dtype, ((key, whole),), axes, -1
        )

    def _shaped(self, group: Group, tensor: LocalTensor) -> None:
        bound = group.bound
        coord = dict(tensor.coord)
        extents = group.extents(tensor, coord, self._mesh)
        over = {axis for cut in bound.cuts.values() for axis in cut.over}
        replica = tuple((axis, index) for axis, index in tensor.coord if axis not in over)
        runs = [f for f in tensor.fragments if f.strides is None and f.box is None]
        for segment in segments(bound.dims, extents) if runs else ():
            key = bound.atoms[segment.labels]
            piece = segment_piece(segment, group.atom_axes[segment.labels], extents)
            for fragment in runs:
                for held in cut(piece, fragment.start, fragment.start + fragment.numel):
                    self._part(key, tensor, fragment, held.shift(-fragment.start), replica)
        for fragment in tensor.fragments:
            if fragment.strides is None and fragment.box is None:
                continue
            window = fragment.box or Box.whole(tensor.shape)
            for part in window_parts(bound.dims, extents, window, fragment.strides):
                piece = part.piece(group.atom_axes[part.labels], extents)
                if piece.box.volume:
                    self._part(bound.atoms[part.labels], tensor, fragment, piece, replica)
        for key in bound.atoms.values():
            self._parts.setdefault((key, tensor.state), [])
        self._whole(group, tensor)

    def _part(
        self, key: str, tensor: LocalTensor, fragment: Fragment, piece: Piece, replica: Coord
    ) -> None:
        self._parts.setdefault((key, tensor.state), []).append(
            StoredPart(
                piece,
                tensor.dtype,
                fragment.file,
                fragment.byte_offset,
                fragment.literal,
                tensor.coord,
                replica,
            )
        )

    def _store(self, key: str, tensor: LocalTensor, piece: Piece, replica: Coord) -> None:
        """A tensor that no rule cuts."""
        self._parts.setdefault((key, tensor.state), [])
        for fragment in tensor.fragments:
            if fragment.strides is not None:
                self._part(key, tensor, fragment, piece, replica)
                continue
            for held in cut(piece, fragment.start, fragment.start + fragment.numel):
                self._part(key, tensor, fragment, held.shift(-fragment.start), replica)

    def _whole(self, group: Group, tensor: LocalTensor) -> None:
        bound = group.bound
        known = self._wholes.get((bound.name, tensor.state))
        if known is not None:
            if known.dtype != tensor.dtype:
                self._problems.append(_dtype_mismatch(bound.name, known, tensor))
            return
        extents = bound.whole_extents()
        shape = bound.shape
        pieces = tuple(
            (bound.atoms[s.labels], segment_piece(s, group.atom_axes[s.labels], extents))
            for s in segments(bound.dims, extents)
        )
        self._wholes[bound.name, tensor.state] = Whole(
            bound.name,
            tensor.state,
            shape,
            tensor.dtype,
            pieces,
            tuple(show_term(term) for term in bound.dims),
            bound.rule,
        )

    def _scalar(self, group: Group, tensor: LocalTensor) -> None:
        """One number per parameter: the same for every atom that the parameter holds."""
        bound = group.bound
        slots = tuple(bound.indices) if self._layout.model is not None else ()
        shape = tuple(group.axis_size(axis) for axis in slots)
        box = Box(tuple(bound.indices[a] for a in slots), (1,) * len(slots))
        piece = Piece(box, 0, (0,) * len(slots))
        keys = []
        for atom in dict.fromkeys(bound.atoms.values()):
            key = f"{atom}()"
            keys.append(key)
            self._atoms[key] = Atom(key, slots, shape)
            self._store(key, tensor, piece, tensor.coord)
        known = self._wholes.get((bound.name, tensor.state))
        if known is None:
            self._wholes[bound.name, tensor.state] = Whole(
                bound.name, tensor.state, (), tensor.dtype, ((keys[0], piece),), (), -1
            )
        elif known.dtype != tensor.dtype:
            self._problems.append(_dtype_mismatch(bound.name, known, tensor))

    def finish(self) -> Arrangement:
        """The arrangement, if nothing was wrong."""
        if self._problems:
            raise ReshardError(self._problems, Exit.LAYOUT)
        return Arrangement(
            self._catalog,
            self._layout,
            dict(self._mesh),
            self._atoms,
            {key: tuple(parts) for key, parts in self._parts.items()},
            self._averaged,
            tuple(self._wholes.values()),
            self._bound,
        )


def _dtype_mismatch(name: str, known: Whole, tensor: LocalTensor) -> Diagnostic:
    where = tensor.fragments[0].file if tensor.fragments else "(no file)"
    return Diagnostic(
        "dtype-mismatch",
        f"pieces of `{name}` ({tensor.state}) have different element types: "
        f"{known.dtype} and {tensor.dtype}",
        notes=(f"{tensor.dtype} in {where}",),
    )
