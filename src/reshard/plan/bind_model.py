"""Layouts of a model: axes are the model's, one size each, and every tensor holds its atoms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from reshard.algebra.term import Term
from reshard.errors import Exit, Label, ReshardError, layout_error
from reshard.language.expression import evaluate
from reshard.language.layout import Layout, Model, Split
from reshard.plan.arrangement import Bound
from reshard.plan.axes import AxisCut, block_count, blocks_of
from reshard.plan.catalog import LocalTensor
from reshard.plan.environment import is_known
from reshard.plan.form import Form
from reshard.plan.group import Group
from reshard.plan.held import Held, wrong_index
from reshard.plan.matching import Matched, active_rules, unused
from reshard.plan.parameters import observe, rank_mismatch, scalar_states, sort_states
from reshard.plan.rule_atoms import rule_atoms
from reshard.plan.solve import Solver, integer, stated_cut
from reshard.plan.solve_faults import Observation, listed
from reshard.plan.whole_names import NamedGroup, whole_names

_Atoms = Mapping[tuple[str, ...], str]


def bind_model(
    layout: Layout,
    matched: Sequence[Matched],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
    given: Collection[str] = (),
) -> Iterator[Group]:
    """Every whole tensor of the source, in order of first appearance.

    Args:  given: names in sizes that the user states.
    Raises: what `Solver.solve` raises, and ReshardError[rank-mismatch | state-shape | name-clash].
    """
    model = layout.model
    assert model is not None
    scalars = scalar_states(item.tensor for item in matched)
    cuts = named_cuts(layout, model, matched, mesh, env)

    def indices(item: Matched) -> dict[str, int]:
        return global_indices(layout, item, cuts, mesh)

    named_held = Held(layout, {axis: cut.size for axis, cut in cuts.items()}, env)
    matched = [_at_its_index(layout, item, cuts, mesh, named_held) for item in matched]
    groups = [
        (named, *sort_states(named.name, named.items, scalars))
        for named in whole_names(layout, matched, indices)
    ]
    solver = Solver(model.axes, layout.places, mesh, env, given=given)
    equations = _equations(layout, ((named, shaped) for named, shaped, _ in groups))
    cuts = {**cuts, **solver.solve(equations)}
    held = Held(layout, {axis: cut.size for axis, cut in cuts.items()}, env)
    forms: dict[int, tuple[Form, _Atoms]] = {}
    for named, shaped, numbers in groups:
        form = forms.get(named.rule)
        if form is None:
            form = forms[named.rule] = _form(layout, named, cuts, mesh)
        yield _group(layout, named, shaped, numbers, form, held)
    _check_indexed(layout, {named.rule for named, _, _ in groups}, held, env)


def global_indices(
    layout: Layout, item: Matched, cuts: Mapping[str, AxisCut], mesh: Mapping[str, int]
) -> dict[str, int]:
    """The index of every slot of a matched name, counted over all ranks."""
    coord = dict(item.tensor.coord)
    local = {slot.axis for slot in layout.rules[item.rule].pattern.slots if slot.local}
    return {
        axis: cuts[axis].extent(coord, mesh).lo + index if axis in local & cuts.keys() else index
        for axis, index in item.match.indices.items()
    }


def _at_its_index(
    layout: Layout, item: Matched, cuts: Mapping[str, AxisCut], mesh: Mapping[str, int], held: Held
) -> Matched:
    """A matched tensor with the one rule of several whose atoms are there at its index.

    Raises: ReshardError[indexed-atom].
    """
    rule = layout.rules[item.rule]
    if rule.only is None or rule.along not in item.match.indices:
        return item
    index = global_indices(layout, item, cuts, mesh)[rule.along]
    for number in (item.rule, *item.others):
        if index in (held.of(layout.rules[number]) or ()):
            return replace(item, rule=number, others=())
    raise wrong_index(layout, rule, item.tensor.name, index, item.tensor.file)


def _check_indexed(
    layout: Layout, used: Collection[int], held: Held, env: Mapping[str, object]
) -> None:
    """Refuse rules without tensors whose atoms are there at some index.

    Raises: ReshardError[unused-rule].
    """
    missed = [
        unused(layout, rule)
        for index in active_rules(layout, env)
        if index not in used and not (rule := layout.rules[index]).optional and held.of(rule)
    ]
    if missed:
        raise ReshardError(missed, Exit.LAYOUT)


def _equations(
    layout: Layout, groups: Iterable[tuple[NamedGroup, Sequence[LocalTensor]]]
) -> list[tuple[tuple[Term, ...], Observation]]:
    """What the stored shapes say, each thing that they say once."""
    out: dict[tuple[object, ...], tuple[tuple[Term, ...], Observation]] = {}
    for named, shaped in groups:
        rule = layout.rules[named.rule]
        for seen in observe(shaped):
            if len(seen.shape) != len(rule.dims):
                raise rank_mismatch(rule, seen)
            out.setdefault((named.rule, seen.coord, seen.shape), (rule.dims, seen))
    return list(out.values())


def _form(
    layout: Layout, named: NamedGroup, cuts: Mapping[str, AxisCut], mesh: Mapping[str, int]
) -> tuple[Form, _Atoms]:
    """What the tensors of a rule share, and by the labels of every segment the atom."""
    rule = layout.rules[named.rule]
    atoms, atom_axes = rule_atoms(layout, rule)
    used = dict.fromkeys((*named.indices, *(a for axes in atom_axes.values() for a in axes)))
    form = Form(rule.dims, {axis: cuts[axis] for axis in used}, atom_axes, named.indices, mesh)
    return form, atoms


def _group(
    layout: Layout,
    named: NamedGroup,
    shaped: tuple[LocalTensor, ...],
    numbers: tuple[LocalTensor, ...],
    form: tuple[Form, _Atoms],
    held: Held,
) -> Group:
    bound = Bound(
        named.name,
        named.rule,
        named.indices,
        named.items[0].match.captures,
        form[0].dims,
        form[0].cuts,
        form[1],
        named.coords,
        held.by_axis(layout.rules[named.rule]),
    )
    return Group(bound, shaped, numbers, form[0])


def named_cuts(
    layout: Layout,
    model: Model,
    matched: Sequence[Matched],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
    axes: Collection[str] | None = None,
) -> dict[str, AxisCut]:
    """The cut of every axis that is counted in names.

    Args:  axes: only of these.
    Raises: ReshardError[uneven-split | bad-size], and what evaluating a size raises.
    """
    counts: dict[str, dict[int | None, int]] = {}
    local: dict[str, Matched] = {}
    for item in matched:
        coord = dict(item.tensor.coord)
        for slot in layout.rules[item.rule].pattern.slots:
            if axes is not None and slot.axis not in axes:
                continue
            block = None
            if slot.local:
                over = layout.places.get(slot.axis, Split()).over
                block = AxisCut(over, (), 0).block(coord, mesh)
                local.setdefault(slot.axis, item)
            blocks = counts.setdefault(slot.axis, {})
            blocks[block] = max(blocks.get(block, 0), item.match.indices[slot.axis] + 1)
    out = {}
    for axis, found in counts.items():
        declared = model.axes[axis].size
        stated = None
        if declared is not None and is_known(declared, env):
            stated = integer(evaluate(declared, env), f"the size of axis `{axis}`")
        split = layout.places.get(axis, Split())
        if found.keys() == {None}:
            size = found[None] if stated is None else stated
            out[axis] = stated_cut(axis, size, split, mesh, env)
        else:
            out[axis] = _counted_locally(layout, axis, split, stated, found, mesh, local[axis])
    return out


def _counted_locally(
    layout: Layout,
    axis: str,
    split: Split,
    stated: int | None,
    found: Mapping[int | None, int],
    mesh: Mapping[str, int],
    item: Matched,
) -> AxisCut:
    """The cut of an axis of which each rank counts its own block from 0."""
    blocks = tuple(found.get(block, 0) for block in range(block_count(split.over, mesh)))
    total = sum(blocks) if stated is None else stated
    why = ""
    try:
        wanted = blocks_of(total, split, mesh)
    except ValueError as error:
        wanted, why = (), f"{error}"
    if wanted == blocks:
        return AxisCut(split.over, blocks, total)
    raise _uneven(
        layout, axis, split, blocks, total, why or f"the layout says {listed(wanted)}", item
    )


def _uneven(
    layout: Layout,
    axis: str,
    split: Split,
    blocks: Sequence[int],
    total: int,
    why: str,
    item: Matched,
) -> ReshardError:
    over = ", ".join(split.over)
    helps = [f"state the counts: `place {axis} over {over} as {listed(blocks)}`"]
    if sum(blocks) != total:
        helps = ["look for a missing rank file, or correct the size of the axis"]
    return layout_error(
        "uneven-split",
        f"axis `{axis}` of {total} is not cut over `{over}` as layout `{layout.name}` says",
        notes=[f"the ranks store {listed(blocks)}, e.g. in {item.tensor.file}", why],
        helps=helps,
        primary=Label(split.span, "cut here") if split.span else None,
    )
