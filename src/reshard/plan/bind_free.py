"""Layouts without a model: every whole tensor has axes of its own, sized from the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reshard.algebra.term import Extent, segments
from reshard.language.layout import Layout
from reshard.plan.arrangement import Bound
from reshard.plan.axes import AxisCut
from reshard.plan.form import Form
from reshard.plan.group import Group
from reshard.plan.matching import Matched
from reshard.plan.parameters import observe, rank_mismatch, scalar_states, sort_states
from reshard.plan.slots import SlotCuts
from reshard.plan.solve import Solver, rule_dims
from reshard.plan.solve_faults import Observation
from reshard.plan.whole_names import NamedGroup, whole_names


def bind_free(
    layout: Layout,
    matched: Sequence[Matched],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
) -> Iterator[Group]:
    """Every whole tensor of the source, in order of first appearance.

    Raises: what `Solver.solve` raises, and ReshardError[rank-mismatch | state-shape | name-clash].
    """
    slots = SlotCuts.of(layout, matched, mesh)
    scalars = scalar_states(item.tensor for item in matched)
    forms: dict[object, Form] = {}
    for named in whole_names(layout, matched, slots.indices):
        yield _group(layout, named, slots.cuts(named.items[0]), scalars, mesh, env, forms)


def _group(
    layout: Layout,
    named: NamedGroup,
    slots: Mapping[str, AxisCut],
    scalars: frozenset[str],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
    forms: dict[object, Form],
) -> Group:
    """Args:  forms: those of the tensors before it, by all that they follow from."""
    shaped, numbers = sort_states(named.name, named.items, scalars)
    seen = observe(shaped)
    kind = named.rule, tuple((x.coord, x.shape) for x in seen), tuple(slots.items())
    form = forms.get(kind)
    if form is None:
        form = forms[kind] = _form(layout, named, seen, slots, mesh, env)
    atoms = {}
    for labels in form.atom_axes:
        label = "/".join(labels)
        atoms[labels] = f"{named.name}#{label}" if label else named.name
    bound = Bound(
        named.name,
        named.rule,
        named.indices,
        named.items[0].match.captures,
        form.dims,
        form.cuts,
        atoms,
        named.coords,
    )
    return Group(bound, shaped, numbers, form)


def _form(
    layout: Layout,
    named: NamedGroup,
    seen: Sequence[Observation],
    slots: Mapping[str, AxisCut],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
) -> Form:
    rule = layout.rules[named.rule]
    dims = rule_dims(rule, len(seen[0].shape))
    if dims is None:
        raise rank_mismatch(rule, seen[0])
    solver = Solver(rule.axes, rule.splits, mesh, env, shares=True)
    solved = solver.solve([(dims, item) for item in seen])
    whole = {axis: Extent.whole(cut.size) for axis, cut in solved.items()}
    atom_axes = {
        segment.labels: tuple(axis for axis, _ in segment.strides)
        for segment in segments(dims, whole)
    }
    # The axes that are counted in the name are none of the atom's, but what they are cut over makes
    # no copies.
    return Form(dims, {**solved, **slots}, atom_axes, named.indices, mesh)
