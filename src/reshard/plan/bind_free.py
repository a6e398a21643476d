"""Layouts without a model: every whole tensor has axes of its own, sized from the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reshard.algebra.term import Extent, Term, segments, stored_shape
from reshard.errors import Label, layout_error
from reshard.language.layout import Layout, Rule
from reshard.plan.arrangement import Bound
from reshard.plan.axes import AxisCut
from reshard.plan.catalog import LocalTensor
from reshard.plan.group import Group
from reshard.plan.matching import Matched
from reshard.plan.slots import SlotFamily, slot_cuts
from reshard.plan.solve import Observation, Solver, rule_dims

_LIKE_PARAMETER = ("param", "master", "exp_avg", "exp_avg_sq")


def bind_free(
    layout: Layout,
    matched: Sequence[Matched],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
) -> Iterator[Group]:
    """Every whole tensor of the source, in order of first appearance."""
    cuts = slot_cuts(layout, matched, mesh)
    members: dict[str, list[Matched]] = {}
    places: dict[str, dict[str, int]] = {}
    for item in matched:
        family = SlotFamily.of(layout.rules[item.rule], item)
        indices = family.global_indices(item, cuts, mesh)
        name = layout.rules[item.rule].pattern.fill(indices, item.match.captures)
        members.setdefault(name, []).append(item)
        places[name] = indices
    for name, items in members.items():
        yield from _groups(layout, name, places[name], items, mesh, env, cuts)


def _groups(
    layout: Layout,
    name: str,
    indices: Mapping[str, int],
    items: Sequence[Matched],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
    slots: Mapping[SlotFamily, Mapping[str, AxisCut]],
) -> Iterator[Group]:
    first = items[0]
    rule = layout.rules[first.rule]
    reference = _reference(items)
    shaped = [m.tensor for m in items if len(m.tensor.shape) == len(reference.shape)]
    scalars = [m.tensor for m in items if m.tensor.shape == () and reference.shape != ()]
    odd = [
        m.tensor
        for m in items
        if m.tensor.shape != () and len(m.tensor.shape) != len(reference.shape)
    ]
    if odd:
        raise _state_shape(name, reference, odd[0])
    dims = rule_dims(rule, len(reference.shape))
    if dims is None:
        raise _rank(rule, reference)
    observations = [
        (dims, Observation(t.name, t.coord, t.shape, _file(t))) for t in _one_per_coord(shaped)
    ]
    solved = Solver(rule.axes, rule.splits, mesh, env).solve(observations)
    for tensor in shaped:
        _check_state(name, reference, tensor, dims, solved, mesh)
    family = SlotFamily.of(rule, first)
    slot = slots.get(family, {})
    whole = {axis: Extent.whole(cut.size) for axis, cut in solved.items()}
    atoms: dict[tuple[str, ...], str] = {}
    atom_axes: dict[tuple[str, ...], tuple[str, ...]] = {}
    for segment in segments(dims, whole):
        atoms[segment.labels] = f"{name}#{'/'.join(segment.labels)}" if segment.labels else name
        atom_axes[segment.labels] = tuple(axis for axis, _ in segment.strides)
    # The axes that cut the name are not axes of the atom, but the mesh axes they use are no copies.
    cuts = {**solved, **slot}
    bound = Bound(
        name,
        first.rule,
        dict(indices),
        first.match.captures,
        dims,
        cuts,
        atoms,
        tuple(dict.fromkeys(m.tensor.coord for m in items)),
    )
    sizes = {axis: cut.size for axis, cut in slot.items()}
    yield Group(bound, tuple(shaped), tuple(scalars), atom_axes, sizes)


def _reference(items: Sequence[Matched]) -> LocalTensor:
    """The tensor whose shape is the parameter's."""
    for state in _LIKE_PARAMETER:
        for item in items:
            if item.tensor.state == state:
                return item.tensor
    return max((item.tensor for item in items), key=lambda tensor: len(tensor.shape))


def _one_per_coord(tensors: Sequence[LocalTensor]) -> list[LocalTensor]:
    """One tensor for each coordinate: the first state's, since all states must have its shape."""
    return list({tensor.coord: tensor for tensor in reversed(tensors)}.values())[::-1]


def _file(tensor: LocalTensor) -> str:
    return tensor.fragments[0].file if tensor.fragments else "(no file)"


def _check_state(
    name: str,
    reference: LocalTensor,
    tensor: LocalTensor,
    dims: tuple[Term, ...],
    cuts: Mapping[str, AxisCut],
    mesh: Mapping[str, int],
) -> None:
    coord = dict(tensor.coord)
    extents = {axis: cut.extent(coord, mesh) for axis, cut in cuts.items()}
    if stored_shape(dims, extents) != tensor.shape:
        raise _state_shape(name, reference, tensor)


def _state_shape(name: str, reference: LocalTensor, tensor: LocalTensor) -> Exception:
    return layout_error(
        "state-shape",
        f"state `{tensor.state}` of `{name}` has shape {list(tensor.shape)}, "
        f"its `{reference.state}` has {list(reference.shape)}",
        notes=[f"{_file(tensor)}", f"{_file(reference)}"],
        helps=["leave this state out with `--states`"],
    )


def _rank(rule: Rule, tensor: LocalTensor) -> Exception:
    wanted = f"at least {len(rule.dims)}" if rule.rest else f"{len(rule.dims)}"
    return layout_error(
        "rank-mismatch",
        f"`{tensor.name}` has {len(tensor.shape)} dimensions, its rule has {wanted}",
        notes=[f"shape {list(tensor.shape)} in {_file(tensor)}"],
        helps=["name every dimension, or end the list with `...`"],
        primary=Label(rule.span, "this rule") if rule.span else None,
    )
