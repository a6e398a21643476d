"""Layouts of a model: axes are the model's, one size each, and every tensor holds its atoms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reshard.algebra.split import split_sizes
from reshard.algebra.term import Extent, Term, segments, term_axes
from reshard.errors import Label, layout_error
from reshard.language.expression import evaluate
from reshard.language.layout import Layout, Model, Rule, Split
from reshard.plan.arrangement import Bound
from reshard.plan.axes import AxisCut, block_count
from reshard.plan.catalog import LocalTensor
from reshard.plan.group import Group
from reshard.plan.matching import Matched
from reshard.plan.solve import Observation, Solver, rule_dims

_LIKE_PARAMETER = ("param", "master", "exp_avg", "exp_avg_sq")


def bind_model(
    layout: Layout,
    matched: Sequence[Matched],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
) -> Iterator[Group]:
    """Every whole tensor of the source, in order of first appearance.

    Raises: what `Solver.solve` raises, and ReshardError[rank-mismatch | state-shape].
    """
    model = layout.model
    assert model is not None
    shapes = _parameter_shapes(matched)
    slots = _slot_axes(layout, model, matched, mesh, env)
    observations = []
    for item in matched:
        rule = layout.rules[item.rule]
        if item.tensor.shape != shapes[item.tensor.name, item.tensor.coord]:
            continue
        dims = rule_dims(rule, len(item.tensor.shape))
        if dims is None:
            raise _rank(rule, item.tensor)
        observations.append(
            (
                dims,
                Observation(
                    item.tensor.name, item.tensor.coord, item.tensor.shape, _file(item.tensor)
                ),
            )
        )
    cuts = dict(Solver(model.axes, layout.places, mesh, env).solve(observations))
    cuts.update({axis: cut for axis, cut in slots.items() if axis not in cuts})
    members: dict[str, list[tuple[Matched, dict[str, int]]]] = {}
    for item in matched:
        pattern = layout.rules[item.rule].pattern
        coord = dict(item.tensor.coord)
        local = {slot.axis for slot in pattern.slots if slot.local}
        indices = {
            axis: cuts[axis].extent(coord, mesh).lo + index if axis in local else index
            for axis, index in item.match.indices.items()
        }
        name = pattern.fill(indices, item.match.captures)
        members.setdefault(name, []).append((item, indices))
    for name, items in members.items():
        yield _group(layout, model, name, [m for m, _ in items], items[0][1], cuts, shapes)


def _group(
    layout: Layout,
    model: Model,
    name: str,
    items: Sequence[Matched],
    indices: Mapping[str, int],
    cuts: Mapping[str, AxisCut],
    shapes: Mapping[tuple[str, object], tuple[int, ...]],
) -> Group:
    rule = layout.rules[items[0].rule]
    shaped = []
    scalars = []
    for item in items:
        wanted = shapes[item.tensor.name, item.tensor.coord]
        if item.tensor.shape == wanted:
            shaped.append(item.tensor)
        elif item.tensor.shape == ():
            scalars.append(item.tensor)
        else:
            raise layout_error(
                "state-shape",
                f"state `{item.tensor.state}` of `{name}` has shape {list(item.tensor.shape)}, "
                f"the parameter has {list(wanted)}",
                notes=[_file(item.tensor)],
                helps=["leave this state out with `--states`"],
            )
    dims = rule.dims
    atoms: dict[tuple[str, ...], str] = {}
    atom_axes: dict[tuple[str, ...], tuple[str, ...]] = {}
    for labels in _labels(dims):
        key = rule.atom if rule.atom is not None else labels[0]
        atoms[labels] = key
        atom_axes[labels] = model.tensors[key].axes
    used = {axis for axes in atom_axes.values() for axis in axes} | set(indices)
    bound = Bound(
        name,
        items[0].rule,
        dict(indices),
        items[0].match.captures,
        dims,
        {axis: cuts[axis] for axis in used},
        atoms,
        tuple(dict.fromkeys(item.tensor.coord for item in items)),
    )
    sizes = {axis: cuts[axis].size for axis in indices}
    return Group(bound, tuple(shaped), tuple(scalars), atom_axes, sizes)


def _labels(dims: tuple[Term, ...]) -> list[tuple[str, ...]]:
    """The labels of every segment of these terms."""
    axes = {axis for term in dims for axis in term_axes(term)}
    return [s.labels for s in segments(dims, {axis: Extent(0, 1, 1) for axis in axes})]


def _parameter_shapes(
    matched: Sequence[Matched],
) -> dict[tuple[str, object], tuple[int, ...]]:
    """The parameter's local shape by stored name and coordinate: the longest that is stored."""
    out: dict[tuple[str, object], tuple[int, ...]] = {}
    for state in (*reversed(_LIKE_PARAMETER), None):
        for item in matched:
            tensor = item.tensor
            key = (tensor.name, tensor.coord)
            if state is None:
                out.setdefault(key, tensor.shape)
            elif tensor.state == state:
                out[key] = tensor.shape
    # A scalar state may be kept for a coordinate that holds no shaped state of its own.
    ranks: dict[str, tuple[int, ...]] = {}
    for (name, _), shape in out.items():
        if len(shape) > len(ranks.get(name, ())):
            ranks[name] = shape
    return {key: shape or ranks.get(key[0], ()) for key, shape in out.items()}


def _slot_axes(
    layout: Layout,
    model: Model,
    matched: Sequence[Matched],
    mesh: Mapping[str, int],
    env: Mapping[str, object],
) -> dict[str, AxisCut]:
    """The cut of every axis that is counted in names."""
    seen: dict[str, dict[int, int]] = {}
    for item in matched:
        coord = dict(item.tensor.coord)
        for slot in layout.rules[item.rule].pattern.slots:
            split = layout.places.get(slot.axis, Split()) if slot.local else Split()
            block = AxisCut(split.over, (), 0).block(coord, mesh) or 0
            counts = seen.setdefault(slot.axis, {})
            counts[block] = max(counts.get(block, 0), item.match.indices[slot.axis] + 1)
    out = {}
    for axis, counts in seen.items():
        split = layout.places.get(axis, Split())
        count = block_count(split.over, mesh)
        declared = model.axes[axis].size if axis in model.axes else None
        stated = None if declared is None else evaluate(declared, env)
        local = any(
            slot.axis == axis and slot.local for rule in layout.rules for slot in rule.pattern.slots
        )
        if not local:
            total = max(counts.values()) if stated is None else int(stated)
            out[axis] = AxisCut((), (total,), total)
            continue
        found = tuple(counts.get(block, 0) for block in range(count))
        total = sum(found) if stated is None else int(stated)
        listed = ", ".join(map(str, found))
        try:
            wanted = split_sizes(total, count, split.rule, split.sizes)
        except ValueError:
            wanted = ()
        if wanted != found:
            raise layout_error(
                "uneven-split",
                f"axis `{axis}` of {total} is not cut as the layout says",
                notes=[f"over {', '.join(split.over)} the ranks number {listed}"],
                helps=[
                    f"state the counts: `place {axis} over {', '.join(split.over)} as {listed}`"
                ],
            )
        out[axis] = AxisCut(split.over, found, total)
    return out


def _file(tensor: LocalTensor) -> str:
    return tensor.fragments[0].file if tensor.fragments else "(no file)"


def _rank(rule: Rule, tensor: LocalTensor) -> Exception:
    return layout_error(
        "rank-mismatch",
        f"`{tensor.name}` has {len(tensor.shape)} dimensions, its rule has {len(rule.dims)}",
        notes=[f"shape {list(tensor.shape)} in {_file(tensor)}"],
        helps=["name every dimension"],
        primary=Label(rule.span, "this rule") if rule.span else None,
    )
