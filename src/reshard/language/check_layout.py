"""Checks of a layout: its statements, each by itself, and what its rules store together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations

from reshard.errors import ReshardError
from reshard.language import tree
from reshard.language.check_dims import check_dims
from reshard.language.check_files import check_files
from reshard.language.check_free import check_free_rule, free_axes
from reshard.language.check_modelled import check_modelled_rule
from reshard.language.check_single import check_constant, check_twice
from reshard.language.check_stored import Stored, check_stored
from reshard.language.conditions import constant
from reshard.language.expression import Expression, can_be_inverted, inverted_names, names
from reshard.language.faults import Faults, near
from reshard.language.implied import spelled_out
from reshard.language.layout import Model
from reshard.language.pattern import NamePattern
from reshard.language.scope import Scope
from reshard.language.words import listed


def check_layout(
    faults: Faults,
    block: tree.LayoutBlock,
    model: Model | bool | None,
    spelled: Collection[str] = (),
) -> None:
    """Check one layout.

    Args:  model: None for a layout without one; False if its model is not known, which leaves
           everything unchecked that needs it.
           spelled: what the `config` lines of the other layouts of the model spell.
    """
    check_constant(faults, block.when, "the condition of this layout", bool)
    if isinstance(model, Model):
        block = spelled_out(block, model)
    scope = _mesh(faults, block)
    scope = _places(scope, block)
    _check_partitions(scope, block)
    check_files(scope, block)
    rules = [(rule, _pattern(faults, rule)) for rule in _rules(block)]
    for rule, _ in rules:
        check_constant(faults, rule.when, "the condition of this rule", bool)
        _check_tails(scope, rule)
    if model is None:
        axes = free_axes(rules)
        _check_placed(scope, axes, f"no rule of layout `{scope.name}` has an axis")
        for rule, pattern in rules:
            check_free_rule(scope, rule, pattern)
        check_stored(scope, block, None, [Stored(rule) for rule, _ in rules], frozenset())
    elif isinstance(model, Model):
        _check_placed(scope, model.axes, f"model `{model.name}` declares no axis")
        _check_mesh_use(scope, model)
        meant: set[str] = set()
        stored = [
            Stored(rule, check_modelled_rule(scope, model, rule, pattern, meant))
            for rule, pattern in rules
        ]
        check_stored(scope, block, model, stored, meant)
        check_dims(scope, model, [rule for rule, _ in rules])
    if model is not False:
        _check_config(faults, block, model if isinstance(model, Model) else None, spelled)


def _rules(block: tree.LayoutBlock) -> list[tree.RuleStatement]:
    return [item for item in block.statements if isinstance(item, tree.RuleStatement)]


def _pattern(faults: Faults, rule: tree.RuleStatement) -> NamePattern | None:
    try:
        return NamePattern.parse(rule.pattern.text, rule.pattern.span)
    except ReshardError as error:
        faults.take(error)
        return None


def _mesh(faults: Faults, block: tree.LayoutBlock) -> Scope:
    axes = [
        axis
        for item in block.statements
        if isinstance(item, tree.MeshStatement)
        for axis in item.axes
    ]
    check_twice(faults, "mesh axis", [axis.name for axis in axes], f"layout `{block.name.text}`")
    mesh: dict[str, tree.Word] = {}
    sizes: dict[str, object] = {}
    for axis in axes:
        name = axis.name.text
        check_constant(faults, axis.size, f"the size of mesh axis `{name}`", int, least=1)
        size = constant(axis.size, sizes)
        if name not in mesh and isinstance(size, int) and size > 0:
            sizes[name] = size
        mesh.setdefault(name, axis.name)
    return Scope(faults, block.name.text, mesh, sizes, {})


def _places(scope: Scope, block: tree.LayoutBlock) -> Scope:
    places: dict[str, tuple[tree.Word, tree.Placement]] = {}
    for item in block.statements:
        if not isinstance(item, tree.PlaceStatement):
            continue
        scope.check_placement(item.placement, item.axes[0].text)
        for word in item.axes:
            if word.text in places:
                scope.faults.add(
                    "duplicate-place",
                    f"axis `{word.text}` is placed twice in layout `{scope.name}`",
                    word.span,
                    "placed again",
                    beside=[(places[word.text][0].span, "first placed here")],
                    helps=[f"name all of its mesh axes at once: `place {word.text} over vpp, pp`"],
                )
            places.setdefault(word.text, (word, item.placement))
    return Scope(scope.faults, scope.name, scope.mesh, scope.sizes, places)


def _check_placed(scope: Scope, known: Collection[str], nobody: str) -> None:
    """Fault placements of axes that do not exist."""
    for name, (word, _) in scope.places.items():
        if name not in known:
            scope.faults.add(
                "unknown-axis",
                f"{nobody} `{name}`",
                word.span,
                "no such axis",
                helps=near(name, known),
            )


def _check_mesh_use(scope: Scope, model: Model) -> None:
    """Fault two axes of one atom that are cut over the same mesh axis."""
    pairs: dict[str, dict[tuple[str, str], str]] = {}
    for tensor in model.tensors.values():
        placed = [axis for axis in dict.fromkeys(tensor.axes) if axis in scope.places]
        for first, second in combinations(sorted(placed, key=list(scope.places).index), 2):
            taken = {word.text for word in scope.places[first][1].over}
            for word in scope.places[second][1].over:
                if word.text in taken:
                    pairs.setdefault(word.text, {}).setdefault((first, second), tensor.name)
    for mesh_axis, found in pairs.items():
        common = set.intersection(*(set(pair) for pair in found))
        if len(found) > 1 and len(common) == 1:
            _one_too_many(scope, mesh_axis, common.pop(), found)
            continue
        for (first, second), name in found.items():
            scope.faults.add(
                "mesh-axis-twice",
                f"axes `{first}` and `{second}` of `{name}` are both cut over mesh axis "
                f"`{mesh_axis}`",
                scope.places[second][0].span,
                f"placed over `{mesh_axis}`",
                beside=[(scope.places[first][0].span, f"also placed over `{mesh_axis}`")],
                notes=[_ONE_POSITION],
            )


_ONE_POSITION = "a rank has one position on a mesh axis, so one axis of an atom can be cut over it"


def _one_too_many(
    scope: Scope, mesh_axis: str, axis: str, pairs: Mapping[tuple[str, str], str]
) -> None:
    """Fault one axis that is cut over a mesh axis together with several others."""
    others = [first if second == axis else second for first, second in pairs]
    scope.faults.add(
        "mesh-axis-twice",
        f"axis `{axis}` is cut over mesh axis `{mesh_axis}`, and so are {listed(others)} of the "
        "same atoms",
        scope.places[axis][0].span,
        f"placed over `{mesh_axis}`",
        beside=[(scope.places[item][0].span, "also placed over it") for item in others],
        notes=[_ONE_POSITION, f"the atoms are {listed(dict.fromkeys(pairs.values()))}"],
        helps=[f"leave `{axis}` out of this `place`, or place it over another mesh axis"],
    )


def _check_partitions(scope: Scope, block: tree.LayoutBlock) -> None:
    states: dict[str, tree.Word] = {}
    for item in block.statements:
        if not isinstance(item, tree.PartitionStatement):
            continue
        scope.check_mesh_axis(item.over.text, item.over.span)
        check_constant(scope.faults, item.align, "the alignment", int, least=1)
        check_constant(scope.faults, item.size, "the size of a bucket", int, least=1)
        check_constant(scope.faults, item.starts, "the multiple", int, least=1)
        _check_clauses(scope, item)
        for word in item.states:
            if word.text in states:
                scope.faults.add(
                    "duplicate-name",
                    f"state `{word.text}` is partitioned twice in layout `{scope.name}`",
                    word.span,
                    "partitioned again",
                    beside=[(states[word.text].span, "first partitioned here")],
                )
            states.setdefault(word.text, word)


_BUFFERS = ("buffer", "buckets")
"""Partitions of many tensors that lie in one place."""


def _check_clauses(scope: Scope, item: tree.PartitionStatement) -> None:
    """Fault clauses that a kind of partition does not obey."""
    clauses = (
        ("of", item.size, ("buckets",), "it says how many elements fill a bucket"),
        ("align", item.align, _BUFFERS, "it rounds up the length of a buffer of many tensors"),
        ("starts", item.starts, _BUFFERS, "it says where tensors begin in a buffer of many"),
    )
    for word, value, kinds, why in clauses:
        if value is not None and item.kind not in kinds:
            scope.faults.add(
                "not-obeyed",
                f"nothing obeys `{word}` in a partition as `{item.kind}`",
                value.span,
                "has no effect",
                notes=[why],
                helps=[f"write `as {kinds[0]} {word} ...`, or remove it"],
            )
    if item.is_round_robin and item.kind != "buffer":
        scope.faults.add(
            "not-obeyed",
            f"nothing obeys `round_robin` in a partition as `{item.kind}`",
            item.span,
            "has no effect",
            notes=["it says in which order tensors lie in a buffer of many"],
            helps=["write `as buffer round_robin`, or remove it"],
        )


def _check_tails(scope: Scope, rule: tree.RuleStatement) -> None:
    for word in rule.averaged_over:
        scope.check_mesh_axis(word.text, word.span)
    if rule.stage is not None and "pp" not in scope.mesh:
        scope.faults.add(
            "unknown-axis",
            f"`on {rule.stage} stage` speaks of mesh axis `pp`, which is not declared",
            rule.stage_span,
            "stages are positions on `pp`",
            helps=["declare it with `mesh pp`"],
            once="mesh pp",
        )


def _check_config(
    faults: Faults, block: tree.LayoutBlock, model: Model | None, spelled: Collection[str]
) -> None:
    """Fault sizes that are spelled twice, and warn of those that nothing uses."""
    items = [item for item in block.statements if isinstance(item, tree.ConfigStatement)]
    check_twice(faults, "config", [item.name for item in items], f"layout `{block.name.text}`")
    used = {name for expression in _expressions(block, model) for name in names(expression)}
    used.update(spelled)
    told = {name for item in items for name in inverted_names(item.value)}
    for item in items:
        if not names(item.value) and constant(item.value, {}) is None:
            check_constant(faults, item.value, "the value", int)
        if model is not None and not can_be_inverted(item.value, told):
            faults.add(
                "one-way-config",
                f"`{item.name.text}` can be read from this, and not written back",
                item.value.span,
                "has no inverse",
                notes=["a checkpoint that is written in this layout does not get these names"],
                helps=["make it of one name, with `+`, `-`, `*`, `/`, `not`, or `or` behind it"],
                level="warning",
            )
        if item.name.text not in used:
            faults.add(
                "unused-config",
                f"nothing uses the size `{item.name.text}`",
                item.name.span,
                "no expression has this name",
                helps=near(item.name.text, used),
                level="warning",
            )


def _expressions(block: tree.LayoutBlock, model: Model | None) -> Iterator[Expression]:
    """Every expression whose names a configuration gives values to."""
    if model is not None:
        for axis in model.axes.values():
            if axis.size is not None:
                yield axis.size
        for tensor in model.tensors.values():
            yield from (part for part in (tensor.when, tensor.only) if part is not None)
    if block.when is not None:
        yield block.when
    for item in block.statements:
        if isinstance(item, tree.MeshStatement):
            yield from (axis.size for axis in item.axes if axis.size is not None)
        elif isinstance(item, tree.ConfigStatement):
            yield item.value
        elif isinstance(item, tree.PlaceStatement):
            yield from _of_placement(item.placement)
        elif isinstance(item, tree.PartitionStatement):
            yield from (part for part in (item.align, item.size, item.starts) if part is not None)
        elif isinstance(item, tree.OrderStatement):
            if item.when is not None:
                yield item.when
        elif isinstance(item, tree.RuleStatement):
            if item.when is not None:
                yield item.when
            for term in tree.axis_terms(item.dims):
                if term.size is not None:
                    yield term.size
                yield from _of_placement(term.placement)


def _of_placement(placement: tree.Placement | None) -> Iterator[Expression]:
    if placement is not None and placement.pad_to is not None:
        yield placement.pad_to
    if placement is not None and placement.truncated_to is not None:
        yield placement.truncated_to
