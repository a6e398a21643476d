"""Which rule of a layout each stored tensor follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reshard.errors import Diagnostic, Exit, Label, ReshardError
from reshard.language.expression import evaluate
from reshard.language.layout import Layout, Rule
from reshard.language.pattern import Match
from reshard.plan.catalog import LocalTensor
from reshard.plan.names import group_names, quantity


@dataclass(frozen=True, slots=True)
class Matched:
    """A stored tensor, its rule, and the indices read from its name."""

    tensor: LocalTensor
    rule: int
    match: Match


def active_rules(layout: Layout, env: Mapping[str, object]) -> tuple[int, ...]:
    """The rules whose `when` holds here, by index."""
    return tuple(
        index
        for index, rule in enumerate(layout.rules)
        if rule.when is None or evaluate(rule.when, env)
    )


def match_tensors(
    layout: Layout, tensors: Iterable[LocalTensor], env: Mapping[str, object]
) -> list[Matched]:
    """Every tensor with the one rule that matches its name.

    Raises: ReshardError[unmatched-tensor | ambiguous-rule | unused-rule], all that apply at once.
    """
    rules = active_rules(layout, env)
    found: dict[str, tuple[int, Match] | None] = {}
    clashes: dict[tuple[int, ...], list[str]] = {}
    used: set[int] = set()
    out: list[Matched] = []
    for tensor in tensors:
        name = tensor.name
        if name not in found:
            hits = [
                (index, hit) for index in rules if (hit := layout.rules[index].pattern.match(name))
            ]
            used.update(index for index, _ in hits)
            if len(hits) > 1:
                clashes.setdefault(tuple(index for index, _ in hits), []).append(name)
            found[name] = hits[0] if hits else None
        chosen = found[name]
        if chosen is not None:
            out.append(Matched(tensor, *chosen))
    problems = _unmatched(layout, [name for name, hit in found.items() if hit is None])
    problems += [_ambiguous(layout, indices, names) for indices, names in clashes.items()]
    problems += [
        _unused(layout, layout.rules[index])
        for index in rules
        if index not in used and not layout.rules[index].optional
    ]
    if problems:
        raise ReshardError(problems, Exit.LAYOUT)
    return out


def _unmatched(layout: Layout, names: list[str]) -> list[Diagnostic]:
    return [
        Diagnostic(
            "unmatched-tensor",
            f"no rule of layout `{layout.name}` matches `{group}`{quantity(count)}",
            helps=(f'add a rule for it, e.g. `"{group}" = [...]` if every rank holds a copy',),
        )
        for group, count in group_names(names)
    ]


def _ambiguous(layout: Layout, indices: tuple[int, ...], names: list[str]) -> Diagnostic:
    first, second = layout.rules[indices[0]], layout.rules[indices[1]]
    group, count = group_names(names)[0]
    return Diagnostic(
        "ambiguous-rule",
        f"{len(indices)} rules match `{group}`{quantity(count)}",
        primary=Label(second.span, "also matches") if second.span else None,
        secondary=(Label(first.span, "matches"),) if first.span else (),
        notes=("rules have no order; exactly one must match each tensor",),
        helps=("make one of the patterns narrower",),
    )


def _unused(layout: Layout, rule: Rule) -> Diagnostic:
    return Diagnostic(
        "unused-rule",
        f'rule `"{rule.pattern.text}"` of layout `{layout.name}` matches no tensor',
        primary=Label(rule.span, "matches nothing") if rule.span else None,
        helps=("correct the name, remove the rule, or end it with `optional`",),
    )
