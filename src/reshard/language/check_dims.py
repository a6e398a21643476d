"""Checks of the dimensions of a layout's rules against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from reshard.language import tree
from reshard.language.layout import Model
from reshard.language.scope import Scope
from reshard.language.words import listed

Shape = tuple[tuple[str, ...], ...]
"""The axes of each dimension of a rule."""


def _shape(rule: tree.RuleStatement) -> Shape:
    return tuple(tuple(term.name.text for term in tree.axis_terms((dim,))) for dim in rule.dims)


def check_dims(scope: Scope, model: Model, rules: Sequence[tree.RuleStatement]) -> None:
    """Fault axes that are one dimension of one tensor and several of another one, and cuts that a
    `place` makes where it was probably not meant to.
    """
    kinds = {_shape(rule): rule for rule in reversed(rules)}
    for rule in rules:
        _check_apart(scope, rule, kinds)
    _check_counted(scope, model, rules)


def _check_apart(
    scope: Scope, rule: tree.RuleStatement, kinds: Mapping[Shape, tree.RuleStatement]
) -> None:
    """Fault commas between axes that elsewhere stand in one dimension, a further one beside it."""
    alone = [dim.name.text if isinstance(dim, tree.AxisTerm) else "" for dim in rule.dims]
    if len(alone) < 3:
        return
    for joint, other in kinds.items():
        for one, two in pairwise(alone):
            together = [names for names in joint if one in names and two in names]
            if not one or not two or not together:
                continue
            others = {names[0]: place for place, names in enumerate(joint) if len(names) == 1}
            beside = [
                name
                for place, name in enumerate(alone)
                if name in others and name not in (one, two) and (place or others[name])
            ]
            if beside:
                _apart(scope, rule, other, alone, together[0])
                return


def _apart(
    scope: Scope,
    rule: tree.RuleStatement,
    other: tree.RuleStatement,
    alone: Sequence[str],
    together: Sequence[str],
) -> None:
    axes = [name for name in alone if name in together]
    dims = " ".join(name if name not in axes[1:] else f"\0{name}" for name in alone)
    said = ", ".join(dims.split(" ")).replace(", \0", " ")
    first = next(d for d in rule.dims if isinstance(d, tree.AxisTerm) and d.name.text == axes[0])
    last = next(d for d in rule.dims if isinstance(d, tree.AxisTerm) and d.name.text == axes[-1])
    span = first.span
    if first.span is not None and last.span is not None:
        span = first.span.of(first.span.source, first.span.start, last.span.end)
    scope.faults.add(
        "axes-apart",
        f"{listed(axes)} are {len(axes)} dimensions here, and one in another rule",
        span,
        f"{len(axes)} dimensions",
        beside=[(other.pattern.span, "one dimension in this one")],
        notes=["a comma begins the next dimension; axes of one dimension have blanks between them"],
        helps=[f"write `{rule.atom.text if rule.atom else ''}[{said}]`"],
    )


def _uncut(model: Model, atom: str, axis: str) -> str:
    axes = model.tensors[atom].axes
    return ", ".join(f"{name} uncut" if name == axis else name for name in axes)


def _check_counted(scope: Scope, model: Model, rules: Sequence[tree.RuleStatement]) -> None:
    """Fault a dimension that is cut because tensors of the same axis are counted on each rank."""
    for axis, (word, placement) in scope.places.items():
        mark = f"{{local {axis}}}"
        counted = [rule for rule in rules if mark in " ".join(rule.pattern.text.split())]
        if not counted or not placement.over or axis not in model.axes:
            continue
        over = listed(item.text for item in placement.over)
        for rule in rules:
            dim = next((x for x in tree.axis_terms(rule.dims) if x.name.text == axis), None)
            if dim is None or rule in counted:
                continue
            labels = [part.label for x in tree.sum_terms(rule.dims) for part in x.parts]
            words = [rule.atom] if rule.atom else [label for label in labels if label]
            if not words or any(item.text not in model.tensors for item in words):
                continue
            atom = words[0].text
            scope.faults.add(
                "cut-dimension",
                f"`{atom}` is cut along `{axis}` over {over}, as the tensors are that are counted "
                f"on each rank",
                dim.span,
                f"cut over {over}",
                beside=[
                    (word.span, f"`{axis}` is placed here"),
                    (counted[0].pattern.span, "counted on each rank"),
                ],
                notes=["a router is usually whole on every rank"],
                helps=[
                    f"if each rank has all of it, say so in the model: `tensor {atom} "
                    f"[{_uncut(model, atom, axis)}]`",
                    f"if it is cut, declare an axis `r` for it, and place it: `place r over "
                    f"{', '.join(item.text for item in placement.over)}`",
                ],
                once=axis,
            )
