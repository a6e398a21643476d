"""Checks of a rule in a layout without a model."""

from __future__ import annotations

from collections.abc import Iterable

from reshard.errors import Span
from reshard.language import tree
from reshard.language.check_single import check_constant
from reshard.language.pattern import IndexSlot, NamePattern
from reshard.language.scope import Scope

Uses = dict[str, Span | None]
"""Names with the place where each was used first."""


def free_axes(
    rules: Iterable[tuple[tree.RuleStatement, NamePattern | None]],
) -> frozenset[str]:
    """Every axis that the rules name, in their shapes or as local indices."""
    out: set[str] = set()
    for rule, pattern in rules:
        out.update(term.name.text for term in tree.axis_terms(rule.dims))
        out.update(slot.axis for slot in (pattern.slots if pattern else ()) if slot.local)
    return frozenset(out)


def check_free_rule(scope: Scope, rule: tree.RuleStatement, pattern: NamePattern | None) -> None:
    """Check one rule; `pattern` is None if its name could not be read."""
    if rule.atom is not None:
        scope.faults.add(
            "layout-kind",
            f"layout `{scope.name}` has no model, so there is no atom `{rule.atom.text}`",
            rule.atom.span,
            "atoms belong to a model",
            helps=[f"write `layout {scope.name} of MODEL`, or `[...]` without a name before it"],
        )
    _check_sums(scope, rule)
    _check_described_once(scope, rule)
    axes: Uses = {}
    mesh: Uses = {}
    for slot in pattern.slots if pattern else ():
        _check_slot(scope, slot)
        _use(scope, axes, {slot.axis: slot.span}, "axis")
        over = _over(scope, slot.axis, slot.over) if slot.local else ()
        _use(scope, mesh, dict.fromkeys(over, slot.span), "mesh")
    for term in rule.dims:
        used, cut = _uses(scope, term)
        _use(scope, axes, used, "axis")
        _use(scope, mesh, cut, "mesh")
    for word in rule.averaged_over:
        if word.text in mesh:
            scope.faults.add(
                "mesh-axis-twice",
                f"this rule averages over mesh axis `{word.text}`, which cuts the tensor",
                word.span,
                "averaged over",
                beside=[(mesh[word.text], "cut over it here")],
            )


def _check_slot(scope: Scope, slot: IndexSlot) -> None:
    over = tuple((name, slot.span) for name in slot.over)
    scope.check_split(over, slot.rule, slot.sizes, slot.span, slot.axis)
    if slot.local and not slot.over and slot.axis not in scope.places:
        scope.faults.add(
            "local-index",
            f"`{slot.axis}` is counted on each rank, and nothing says how it is cut",
            slot.span,
            "over which mesh axis?",
            helps=[
                f"write `{{local {slot.axis} over ep}}`, or `{{{slot.axis}}}` for an index that is "
                "the same on every rank"
            ],
        )


def _check_sums(scope: Scope, rule: tree.RuleStatement) -> None:
    for term in tree.sum_terms(rule.dims):
        seen: Uses = {}
        for part in term.parts:
            label = part.label
            if label is None and isinstance(part.term, tree.AxisTerm):
                label = part.term.name
            if label is None or label.text == "_":
                scope.faults.add(
                    "unlabelled-part",
                    "a part of this sum has no name",
                    part.span,
                    "what is this part called?",
                    helps=["name it as in `(q[heads d] + k[d])`, or make it a single named axis"],
                )
                continue
            if label.text in seen:
                scope.faults.add(
                    "duplicate-name",
                    f"two parts of a sum are called `{label.text}`",
                    label.span,
                    "the second one",
                    beside=[(seen[label.text], "the first one")],
                )
            seen.setdefault(label.text, label.span)


def _check_described_once(scope: Scope, rule: tree.RuleStatement) -> None:
    """Check sizes and placements; an axis that several parts share says them once, or equally."""
    known: dict[str, tree.AxisTerm] = {}
    for term in tree.axis_terms(rule.dims):
        name = term.name.text
        check_constant(scope.faults, term.size, f"the size of axis `{name}`", int)
        if term.placement is not None:
            scope.check_placement(term.placement, name, term.size)
        if name == "_":
            continue
        first = known.setdefault(name, term)
        if first.size is None or first.placement is None:
            known[name] = tree.AxisTerm(
                first.name, first.size or term.size, first.placement or term.placement, first.span
            )
        differs = (term.size is not None and first.size not in (None, term.size)) or (
            term.placement is not None and first.placement not in (None, term.placement)
        )
        if differs:
            scope.faults.add(
                "duplicate-place",
                f"axis `{name}` is described twice in this rule, and not equally",
                term.span,
                "described again",
                beside=[(first.span, "first described here")],
                helps=["describe it once, or give the second axis a name of its own"],
            )


def _uses(scope: Scope, term: tree.TermTree) -> tuple[Uses, Uses]:
    """The axes of a term and the mesh axes that they are cut over.

    Parts of a sum lie side by side, so they may share both; the factors of a product may not.
    """
    if isinstance(term, tree.AxisTerm):
        name = term.name.text
        own = tuple(word.text for word in term.placement.over) if term.placement else ()
        over = own if term.placement else _over(scope, name, ())
        return ({} if name == "_" else {name: term.span}), dict.fromkeys(over, term.span)
    axes: Uses = {}
    mesh: Uses = {}
    if isinstance(term, tree.ProductTerm):
        for factor in term.factors:
            used, cut = _uses(scope, factor)
            _use(scope, axes, used, "axis")
            _use(scope, mesh, cut, "mesh")
        return axes, mesh
    for part in term.parts:
        used, cut = _uses(scope, part.term)
        for known, more in ((axes, used), (mesh, cut)):
            for name, span in more.items():
                known.setdefault(name, span)
    return axes, mesh


def _over(scope: Scope, axis: str, own: tuple[str, ...]) -> tuple[str, ...]:
    if own or axis not in scope.places:
        return own
    return tuple(word.text for word in scope.places[axis][1].over)


def _use(scope: Scope, known: Uses, more: Uses, kind: str) -> None:
    for name, span in more.items():
        if name in known and kind == "axis":
            scope.faults.add(
                "axis-twice",
                f"axis `{name}` stands twice in one rule",
                span,
                "the second time",
                beside=[(known[name], "the first time")],
                helps=["give each axis of a tensor a name of its own; `_` is a new one each time"],
            )
        elif name in known:
            scope.faults.add(
                "mesh-axis-twice",
                f"two axes of one tensor are cut over mesh axis `{name}`",
                span,
                f"cut over `{name}`",
                beside=[(known[name], f"also cut over `{name}`")],
                notes=[
                    "a rank has one position on a mesh axis, so one axis of a tensor can be cut "
                    "over it"
                ],
            )
        known.setdefault(name, span)
