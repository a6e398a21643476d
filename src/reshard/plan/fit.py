"""Which of several layouts a checkpoint is in: by its configuration, and by the names it stores.

A layout's rules may depend on facts that the checkpoint's configuration does not tell, such as
whether there are biases. The names tell: the facts are chosen so that every name follows exactly
one rule and every rule has a name. Where more than one choice does that, the one is taken that
claims least: a head that is stored is a head, and not a copy of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from reshard.errors import ReshardError
from reshard.language.expression import Expression, known_value, names, operands
from reshard.language.layout import Layout, Rule
from reshard.plan.catalog import Catalog
from reshard.plan.environment import environment
from reshard.plan.fit_indices import solve_indices
from reshard.plan.offsets import has_offsets, with_offsets
from reshard.plan.stored_names import StoredNames
from reshard.plan.ties import hold_one_atom, tie_groups

MAX_FACTS = 10
"""Facts that are tried both ways; a layout that asks for more does not fit."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A layout whose rules are those of a checkpoint.

    Args:  facts: what the names told, by the name that the layout's conditions use.
           is_used: whether every rule has a tensor, those of atoms that are nowhere included.
           agrees: whether the checkpoint's configuration is what the layout says it is of; None
                   if it does not tell.
    """

    layout: Layout
    facts: Mapping[str, object]
    agrees: bool | None
    is_used: bool = True


def fit(
    layout: Layout,
    catalog: Catalog,
    settings: Mapping[str, float | None],
    stored: StoredNames | None = None,
) -> Fit | None:
    """The layout with the facts under which it is that of a checkpoint; None if there are none.

    Args:  settings: sizes and facts that the user states.  stored: the names of the catalog.
    """
    if layout.left_out:
        tensors = tuple(x for x in catalog.tensors if layout.leaves_out(x.name) is None)
        catalog, stored = replace(catalog, tensors=tensors), None
    stored = stored or StoredNames.of(catalog)
    tied_names = {name for group in tie_groups(catalog.aliases) for name in group}
    if has_offsets(layout):
        try:
            env = environment(layout, catalog, dict(catalog.mesh), settings)
            layout = with_offsets(layout, env)
        except ReshardError:
            return None
    hits: dict[str, tuple[int, ...]] = {}
    for name in stored.asked_of(layout):
        found = tuple(index for index, _ in layout.matches(name))
        if not found and name not in tied_names:
            return None
        hits[name] = found
    try:
        env = environment(layout, catalog, dict(catalog.mesh), settings)
        tied = _tied_hits(layout, catalog)
        alone = [found for name, found in hits.items() if name not in tied_names]
        chosen = _choose(layout, env, alone, tied)
        if chosen is None:
            return None
        env.update(chosen)
        more = solve_indices(layout, catalog, stored, hits, env)
    except ReshardError:
        return None
    if more is None:
        return None
    env.update(more)
    used = {index for found in (*hits.values(), *tied) for index in found}
    left = (_active(layout, env) or frozenset()) - used
    is_used = all(layout.rules[index].optional for index in left)
    return Fit(layout, {**chosen, **more}, holds(layout.when, env), is_used)


def _tied_hits(layout: Layout, catalog: Catalog) -> tuple[tuple[int, ...], ...]:
    """The rules of every tied tensor, by whichever of its names.

    What is tied need not have a rule under each of its names.
    """
    out = []
    for group in tie_groups(catalog.aliases):
        found = dict.fromkeys(index for name in group for index, _ in layout.matches(name))
        out.append(tuple(found))
    return tuple(out)


def _choose(
    layout: Layout,
    env: Mapping[str, object],
    hits: Iterable[tuple[int, ...]],
    tied: Sequence[tuple[int, ...]],
) -> dict[str, bool] | None:
    unknown = tuple(name for name in facts(layout) if name not in env)
    if len(unknown) > MAX_FACTS:
        return None
    found: dict[frozenset[int], dict[str, bool]] = {}
    for values in sorted(product((False, True), repeat=len(unknown)), key=sum):
        chosen = dict(zip(unknown, values, strict=True))
        active = _active(layout, {**env, **chosen})
        if active is not None and _explains(layout, active, hits, tied):
            found.setdefault(active, chosen)
    choices = list(found.values())
    if any(not _claimed(choices[0]) <= _claimed(other) for other in choices[1:]):
        return None
    return choices[0] if choices else None


def _claimed(chosen: Mapping[str, bool]) -> set[str]:
    return {name for name, value in chosen.items() if value}


def read_alike(one: Fit, other: Fit, catalog: Catalog, stored: StoredNames) -> bool:
    """Whether two layouts say the same of every tensor of a checkpoint that is not cut by ranks."""
    if any(tensor.coord for tensor in catalog.tensors) or one.layout.model != other.layout.model:
        return False
    return all(
        _reading(one, name, catalog) == _reading(other, name, catalog) for name in stored.kinds
    )


def _reading(item: Fit, name: str, catalog: Catalog) -> list[object]:
    env = {**environment(item.layout, catalog, {}, {}), **item.facts}
    active = _active(item.layout, env) or ()
    found = [(item.layout.rules[i], match) for i, match in item.layout.matches(name) if i in active]
    return [(rule.atom, rule.dims, sorted(match.indices), rule.only) for rule, match in found]


def unmatched(layout: Layout, stored: StoredNames) -> tuple[str, ...]:
    """The names that no rule of a layout matches, under whatever conditions."""
    return tuple(name for name in stored.kinds if not any(layout.matches(name)))


def ruled_out(layout: Layout, catalog: Catalog, stored: StoredNames) -> tuple[Rule, ...]:
    """The rules that stored names match, and that the configuration says there are none of."""
    try:
        env = environment(layout, catalog, dict(catalog.mesh), {})
    except ReshardError:
        return ()
    found: dict[int, Rule] = {}
    for name in stored.kinds:
        rules = {index: layout.rules[index] for index, _ in layout.matches(name)}
        if all(rule.when is not None and holds(rule.when, env) is False for rule in rules.values()):
            found |= dict(list(rules.items())[:1])
    return tuple(found.values())


def unused_rules(layout: Layout, catalog: Catalog, stored: StoredNames) -> tuple[Rule, ...]:
    """The rules of a layout that must have a tensor and have none.

    Facts that are unknown are as leaves the fewest rules without one.
    """
    try:
        env = environment(layout, catalog, dict(catalog.mesh), {})
    except ReshardError:
        env = {}
    unknown = [name for name in facts(layout) if name not in env]
    chosen: dict[str, bool] = dict.fromkeys(unknown, False)
    found = _unused(layout, {**env, **chosen}, stored)
    for name in unknown:
        other = _unused(layout, {**env, **chosen, name: True}, stored)
        if len(other) < len(found):
            chosen[name], found = True, other
    return tuple(layout.rules[index] for index in found)


def _unused(layout: Layout, env: Mapping[str, object], stored: StoredNames) -> list[int]:
    used = {index for name in stored.kinds for index, _ in layout.matches(name)}
    return [
        index
        for index in sorted(_active(layout, env) or ())
        if not layout.rules[index].optional
        and layout.rules[index].only is None
        and index not in used
    ]


def facts(layout: Layout) -> tuple[str, ...]:
    """Every name that the conditions of a layout's rules ask for."""
    asked = (name for rule in layout.rules if rule.when is not None for name in names(rule.when))
    return tuple(dict.fromkeys(asked))


def holds(condition: Expression | None, env: Mapping[str, object]) -> bool | None:
    """Whether a condition holds; None where that depends on what is not known."""
    if condition is None:
        return None
    for operator, decides in (("or", True), ("and", False)):
        parts = operands(operator, condition)
        if len(parts) > 1:
            found = [holds(part, env) for part in parts]
            if decides in found:
                return decides
            return None if None in found else not decides
    try:
        value = known_value(condition, env)
    except ReshardError:
        return False
    return None if value is None else value is True


def _active(layout: Layout, env: Mapping[str, object]) -> frozenset[int] | None:
    active = set()
    for index, rule in enumerate(layout.rules):
        try:
            value = True if rule.when is None else known_value(rule.when, env)
        except ReshardError:
            value = None
        if value is None:
            return None
        if value:
            active.add(index)
    return frozenset(active)


def _explains(
    layout: Layout,
    active: frozenset[int],
    hits: Iterable[tuple[int, ...]],
    tied: Sequence[tuple[int, ...]],
) -> bool:
    """Whether every name has one active rule, and every active rule that must have one a name.

    Two rules of one name that are there on different stages, or whose atoms are there at different
    indices, are both meant by it.
    """
    used = set()
    for indices in hits:
        chosen = [index for index in indices if index in active]
        stages = {layout.rules[index].stage for index in chosen}
        is_staged = len(stages) == len(chosen) and None not in stages
        is_indexed = all(layout.rules[index].only is not None for index in chosen)
        if not chosen or (len(chosen) > 1 and not is_staged and not is_indexed):
            return False
        used.update(chosen)
    for indices in tied:
        chosen = [index for index in indices if index in active]
        if not hold_one_atom(layout, chosen):
            return False
        used.update(chosen)
    rules = [layout.rules[index] for index in active - used]
    return all(rule.optional or rule.only is not None for rule in rules)
