"""Which rule of a layout each stored tensor follows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import Diagnostic, Exit, Label, ReshardError, source_error
from reshard.language.expression import evaluate
from reshard.language.layout import Layout, Rule
from reshard.language.pattern import MAX_LENGTH, Match
from reshard.plan.catalog import Catalog, Coord, LocalTensor
from reshard.plan.names import families, group_names, quantity
from reshard.run.states import EXTRA

"""State kind of tensors that belong to no parameter (RNG states and the like); no rule applies."""

STAGE_AXES = ("pp", "vpp")
"""Mesh axes that number pipeline stages."""

_BRACES = re.compile(r"\{[^}]*\}")


@dataclass(frozen=True, slots=True)
class Matched:
    """A stored tensor, its rule, and the indices read from its name.

    Args:  others: rules of the same names whose atoms are there at other indices (`plan.held`).
    """

    tensor: LocalTensor
    rule: int
    match: Match
    others: tuple[int, ...] = ()


def active_rules(layout: Layout, env: Mapping[str, object]) -> tuple[int, ...]:
    """The rules whose `when` holds here, by index."""
    return tuple(
        index
        for index, rule in enumerate(layout.rules)
        if rule.when is None or evaluate(rule.when, env)
    )


def on_stage(rule: Rule, coord: Mapping[str, int], mesh: Mapping[str, int]) -> bool:
    """Whether a rule applies at a coordinate: on the first or the last stage, where it says so.

    The chunks of a virtual pipeline (`vpp`) are stages too, and the slower ones.
    """
    if rule.stage is None:
        return True
    return all(
        coord[axis] == (0 if rule.stage == "first" else mesh.get(axis, 1) - 1)
        for axis in STAGE_AXES
        if axis in coord
    )


def match_tensors(
    layout: Layout,
    catalog: Catalog,
    env: Mapping[str, object],
    mesh: Mapping[str, int],
) -> list[Matched]:
    """Every tensor of parameters with the one rule that matches its name.

    Raises: ReshardError[unmatched-tensor | ambiguous-rule | unused-rule], all that apply at once.
    """
    rules = active_rules(layout, env)
    active = frozenset(rules)
    staged = any(layout.rules[index].stage is not None for index in rules)
    found: dict[tuple[str, Coord], tuple[int, Match, tuple[int, ...]] | None] = {}
    lost: dict[str, LocalTensor] = {}
    clashes: dict[tuple[int, ...], list[str]] = {}
    used: set[int] = set()
    out: list[Matched] = []
    for tensor in catalog.tensors:
        if tensor.state == EXTRA:
            continue
        if len(tensor.name) > MAX_LENGTH:
            raise _too_long(tensor)
        key = tensor.name, tensor.coord if staged else ()
        if key not in found:
            coord = dict(tensor.coord)
            hits = [
                (index, hit)
                for index, hit in layout.matches(tensor.name)
                if index in active and on_stage(layout.rules[index], coord, mesh)
            ]
            used.update(index for index, _ in hits)
            if len(hits) > 1 and not all(layout.rules[index].only for index, _ in hits):
                clashes.setdefault(tuple(index for index, _ in hits), []).append(tensor.name)
            if not hits:
                lost.setdefault(tensor.name, tensor)
            found[key] = (*hits[0], tuple(index for index, _ in hits[1:])) if hits else None
        chosen = found[key]
        if chosen is not None:
            out.append(Matched(tensor, *chosen))
    for name in catalog.aliases or {}:  # a tied tensor may be stored under one of its names alone
        used.update(index for index, _ in layout.matches(name) if index in active)
    problems = _unmatched(layout, rules, lost)
    problems += [_ambiguous(layout, indices, names) for indices, names in clashes.items()]
    problems += [
        unused(layout, layout.rules[index])
        for index in rules
        if index not in used and not layout.rules[index].optional and not layout.rules[index].only
    ]
    if problems:
        raise ReshardError(problems, Exit.LAYOUT)
    return out


def _too_long(tensor: LocalTensor) -> ReshardError:
    return source_error(
        "tensor-name",
        f"a tensor has a name of {len(tensor.name)} characters",
        notes=[f"it begins with `{tensor.name[:60]}`", f"at most {MAX_LENGTH} can be matched"],
        helps=["rename it where the checkpoint is saved"],
    )


def _unmatched(
    layout: Layout, rules: Sequence[int], lost: Mapping[str, LocalTensor]
) -> list[Diagnostic]:
    """Names that no rule matches, and names that one matches on another stage."""
    active = frozenset(rules)
    elsewhere: dict[int, list[str]] = {}
    nowhere = []
    for name in lost:
        hit = next((index for index, _ in layout.matches(name) if index in active), None)
        if hit is None:
            nowhere.append(name)
        else:
            elsewhere.setdefault(hit, []).append(name)
    out = [_nowhere(layout, group, members, lost) for group, members in families(nowhere)]
    return out + [
        _elsewhere(layout.rules[index], group, members, lost)
        for index, names in elsewhere.items()
        for group, members in families(names)
    ]


def _nowhere(
    layout: Layout, group: str, members: Sequence[str], lost: Mapping[str, LocalTensor]
) -> Diagnostic:
    first = lost[members[0]]
    pattern = _BRACES.sub("*", group)
    if layout.model is None:
        help_text = f'add a rule for it, e.g. `"{pattern}" = [...]` if every rank holds a copy'
    else:
        help_text = f'add a rule that names its atom, `"{pattern}" = ATOM[...]`'
    return Diagnostic(
        "unmatched-tensor",
        f"no rule of layout `{layout.name}` matches `{group}`{quantity(len(members))}",
        notes=(f"shape {list(first.shape)} in {first.file}",),
        helps=(help_text,),
    )


def _elsewhere(
    rule: Rule, group: str, members: Sequence[str], lost: Mapping[str, LocalTensor]
) -> Diagnostic:
    first = lost[members[0]]
    where = ", ".join(f"{axis}={index}" for axis, index in first.coord)
    return Diagnostic(
        "unmatched-tensor",
        f"`{group}`{quantity(len(members))} is stored where its rule does not apply",
        primary=Label(rule.span, f"only on the {rule.stage} stage") if rule.span else None,
        notes=(f"on {where} in {first.file}",),
        helps=("leave `on first stage` or `on last stage` out, or add a rule for this stage",),
    )


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


def unused(layout: Layout, rule: Rule) -> Diagnostic:
    """A rule that must match something, and does not."""
    return Diagnostic(
        "unused-rule",
        f'rule `"{rule.pattern.text}"` of layout `{layout.name}` matches no tensor',
        primary=Label(rule.span, "matches nothing") if rule.span else None,
        helps=("correct the name, remove the rule, or end it with `optional`",),
    )
