"""Reads a catalog through a layout: which stored run holds which elements of which atom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reshard.algebra.bijection import find_axis_fault
from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.algebra.term import Extent, Leaf
from reshard.algebra.window import window_parts
from reshard.dtypes import DType
from reshard.errors import Diagnostic, Exit, Label, ReshardError, layout_error
from reshard.language.expression import evaluate
from reshard.language.layout import Layout
from reshard.plan.arrangement import SCALAR, Arrangement, Atom, AtomState, Bound, StoredPart, Whole
from reshard.plan.axes import AxisCut
from reshard.plan.bind_free import bind_free
from reshard.plan.bind_model import bind_model
from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor
from reshard.plan.collector import uncollected
from reshard.plan.environment import environment
from reshard.plan.form import Form, ShapeError
from reshard.plan.group import Group, shape_mismatch
from reshard.plan.matching import active_rules, match_tensors
from reshard.plan.numbers import number_segments
from reshard.plan.offsets import with_offsets
from reshard.plan.solve import integer
from reshard.plan.ties import settle
from reshard.run.states import EXTRA


@uncollected
def bind(
    layout: Layout, catalog: Catalog, *, settings: Mapping[str, float | None] | None = None
) -> Arrangement:
    """The arrangement of a catalog under a layout.

    Args:  settings: sizes that the user states (`--set`); they win over everything else.
    Raises: ReshardError[mesh-mismatch | unmatched-tensor | ambiguous-rule | unused-rule |
            name-clash | rank-mismatch | state-shape | shape-mismatch | uneven-split |
            unsolvable-size | bad-size | missing-block | dtype-mismatch], and what evaluating an
            expression of the layout raises.
    """
    mesh = _mesh(layout, catalog, settings or {})
    env = environment(layout, catalog, mesh, settings or {})
    layout = with_offsets(layout, env)
    catalog = settle(layout, catalog, active_rules(layout, env))
    matched = match_tensors(layout, catalog, env, mesh)
    builder = _Builder(layout, catalog, mesh)
    if layout.model is None:
        groups = bind_free(layout, matched, mesh, env)
    else:
        stated = {name for name, value in (settings or {}).items() if value is not None}
        groups = bind_model(layout, matched, mesh, env, stated)
    for group in groups:
        builder.add(group)
    for tensor in catalog.tensors:
        if tensor.state == EXTRA:
            builder.add_extra(tensor)
    return builder.finish()


def _mesh(layout: Layout, catalog: Catalog, settings: Mapping[str, float | None]) -> dict[str, int]:
    """The mesh of the source: what the checkpoint tells, and what the layout states."""
    mesh = dict(catalog.mesh)
    env = environment(layout, catalog, mesh, settings)
    for axis, size in layout.mesh.items():
        if size is None:
            continue
        stated = integer(evaluate(size, env), f"the size of mesh axis `{axis}`")
        if mesh.setdefault(axis, stated) != stated:
            span = getattr(size, "span", None)
            raise layout_error(
                "mesh-mismatch",
                f"layout `{layout.name}` says {axis}={stated}, and the checkpoint has "
                f"{axis}={mesh[axis]}",
                notes=[f"checkpoint: {catalog.root}"],
                helps=[f"correct the layout's `mesh` line, or leave the size of `{axis}` out"],
                primary=Label(span, f"says {stated}") if span else None,
            )
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
        self._dtypes: dict[tuple[str, str], tuple[DType, LocalTensor]] = {}
        self._problems: list[Diagnostic] = []
        self._checked: set[Form] = set()

    def add(self, group: Group) -> None:
        """One whole tensor with all of its stored local tensors, of every state."""
        bound, form = group.bound, group.form
        rule = self._layout.rules[bound.rule]
        if form not in self._checked:
            _check_bijection(self._layout, group)
            self._checked.add(form)
        self._bound[bound.name] = bound
        for labels, key in bound.atoms.items():
            axes = form.atom_axes[labels]
            known = self._atoms.get(key)
            shape = tuple(map(bound.axis_size, axes))
            if known is None or known.shape != shape or known.axes != axes:
                self._atoms[key] = Atom(key, axes, shape)
            if rule.averaged_over:
                self._averaged[key] = rule.averaged_over
        positions = bound.positions
        for tensor in group.shaped:
            self._store_shaped(group, tensor, positions)
        self._add_wholes(group, positions)
        for tensor in group.scalars:
            self._add_scalar(group, tensor)

    def add_extra(self, tensor: LocalTensor) -> None:
        """A tensor that belongs to no parameter; it is its own atom."""
        key = f"{EXTRA}:{tensor.name}"
        axes = tuple(f"_{i}" for i in range(len(tensor.shape)))
        self._atoms[key] = Atom(key, axes, tensor.shape)
        dims = tuple(Leaf(axis) for axis in axes)
        cuts = {
            axis: AxisCut((), (size,), size) for axis, size in zip(axes, tensor.shape, strict=True)
        }
        for _, part in stored_parts(tensor, Form(dims, cuts, {(): axes}, (), {}), {}):
            self._part(key, tensor, part, (), tensor.name, -1)
        self._parts.setdefault((key, EXTRA), [])
        whole = Piece(Box.whole(tensor.shape), 0, row_major(tensor.shape))
        self._wholes[tensor.name, EXTRA] = Whole(
            tensor.name, EXTRA, tensor.shape, tensor.dtype, ((key, whole),), axes, -1
        )

    def _store_shaped(
        self, group: Group, tensor: LocalTensor, positions: Mapping[str, int]
    ) -> None:
        bound, form = group.bound, group.form
        for key in bound.atoms.values():
            self._parts.setdefault((key, tensor.state), [])
        try:
            for labels, part in stored_parts(tensor, form, positions):
                replica = form.replica(tensor.coord, labels)
                self._part(bound.atoms[labels], tensor, part, replica, bound.name, bound.rule)
        except ShapeError as error:
            raise shape_mismatch(tensor, error.shape) from None
        self._check_dtype(bound.name, tensor)

    def _part(
        self,
        key: str,
        tensor: LocalTensor,
        part: tuple[Piece, tuple[Fragment, ...]],
        replica: Coord,
        whole: str,
        rule: int,
    ) -> None:
        piece, fragments = part
        self._parts.setdefault((key, tensor.state), []).append(
            StoredPart(piece, tensor.dtype, fragments, tensor.coord, replica, whole, rule)
        )

    def _add_wholes(self, group: Group, positions: Mapping[str, int]) -> None:
        bound, form = group.bound, group.form
        pieces = tuple(
            (bound.atoms[labels], piece.at(positions)) for labels, piece in form.whole_pieces()
        )
        for state in dict.fromkeys(tensor.state for tensor in group.shaped):
            dtype, _ = self._dtypes[bound.name, state]
            self._wholes[bound.name, state] = Whole(
                bound.name, state, form.shape, dtype, pieces, form.axes, bound.rule
            )

    def _add_scalar(self, group: Group, tensor: LocalTensor) -> None:
        """One number per parameter: the same for every atom that the parameter holds."""
        bound = group.bound
        slots = tuple(bound.indices) if self._layout.model is not None else ()
        for key in dict.fromkeys(bound.atoms.values()):
            number = f"{key}{SCALAR}"
            shape = tuple(map(bound.axis_size, slots))
            self._atoms[number] = Atom(number, slots, shape)
        found = number_segments(bound.atoms.values(), bound.positions, self._atoms)
        for number, piece in found:
            part = piece, tensor.fragments
            self._part(number, tensor, part, tensor.coord, bound.name, bound.rule)
        self._check_dtype(bound.name, tensor)
        self._wholes[bound.name, tensor.state] = Whole(
            bound.name, tensor.state, (), tensor.dtype, found, (), -1
        )

    def _check_dtype(self, name: str, tensor: LocalTensor) -> None:
        dtype, first = self._dtypes.setdefault((name, tensor.state), (tensor.dtype, tensor))
        if dtype != tensor.dtype:
            self._problems.append(_dtype_mismatch(name, first, tensor))

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


def stored_parts(
    tensor: LocalTensor, form: Form, positions: Mapping[str, int]
) -> Iterator[tuple[tuple[str, ...], tuple[Piece, tuple[Fragment, ...]]]]:
    """What a local tensor holds of each atom, by the labels of its segments; nothing that is empty.

    Runs share one piece, addressed in the local tensor; a box, or what is not stored row-major, has
    pieces of its own.

    Args:  positions: per slot of the name, the index in the atoms.
    Raises: ShapeError.
    """
    pieces = form.pieces(tensor.coord, tensor.shape)
    runs = tuple(f for f in tensor.fragments if f.strides is None and f.box is None)
    if len(runs) == len(tensor.fragments):
        runs = tensor.fragments
    if runs:
        for labels, piece in pieces:
            yield labels, (piece.at(positions), runs)
    if len(runs) == len(tensor.fragments):
        return
    extents = {
        **form.extents(tensor.coord, tensor.shape),
        **{axis: Extent(index, 1, 1) for axis, index in positions.items()},
    }
    for fragment in tensor.fragments:
        if fragment.strides is None and fragment.box is None:
            continue
        window = fragment.box or Box.whole(tensor.shape)
        for part in window_parts(form.dims, extents, window, fragment.strides):
            made = part.piece(form.atom_axes[part.labels], extents)
            if made.box.volume:
                yield part.labels, (made, (fragment,))


def _check_bijection(layout: Layout, group: Group) -> None:
    """Refuse a rule that does not map elements one to one; a text that was checked has none."""
    bound = group.bound
    named = () if layout.model is None else tuple(bound.indices)
    over = {axis: cut.over for axis, cut in bound.cuts.items()}
    fault = find_axis_fault(bound.dims, named, group.form.atom_axes, over)
    if fault is not None:
        text = layout.rules[bound.rule].pattern.text
        raise ValueError(f'rule "{text}" does not map elements one to one: {fault}')


def _dtype_mismatch(name: str, first: LocalTensor, tensor: LocalTensor) -> Diagnostic:
    return Diagnostic(
        "dtype-mismatch",
        f"pieces of `{name}` ({tensor.state}) have different element types, "
        f"{first.dtype} and {tensor.dtype}",
        notes=(f"{first.dtype} in {first.file}", f"{tensor.dtype} in {tensor.file}"),
    )


__all__ = ["EXTRA", "bind", "stored_parts"]
