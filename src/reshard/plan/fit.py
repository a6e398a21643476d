"""Which of several layouts a checkpoint is in, by the names that it stores.

A layout's rules may depend on facts that the checkpoint's configuration does not tell, such as
whether there are biases. The names tell: the facts are chosen so that every name follows exactly
one rule and every rule has a name. If more than one choice does that, none is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from reshard.errors import ReshardError
from reshard.language.expression import evaluate, names
from reshard.language.layout import Layout
from reshard.plan.catalog import Catalog
from reshard.plan.environment import environment

MAX_FACTS = 10
"""Facts that are tried both ways; a layout that asks for more does not fit."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A layout that a checkpoint is in.

    Args:  facts: what the names told, by the name that the layout's conditions use.
    """

    layout: Layout
    facts: Mapping[str, bool]


def fit(layout: Layout, catalog: Catalog, settings: Mapping[str, int]) -> Fit | None:
    """The layout with the facts under which it is that of a checkpoint; None if there are none.

    Args:  settings: sizes and facts that the user states.
    """
    stored = dict.fromkeys(t.name for t in catalog.tensors if t.state != "extra")
    try:
        env = environment(layout, catalog, dict(catalog.mesh), settings)
    except ReshardError:
        return None
    hits = {
        name: tuple(i for i, rule in enumerate(layout.rules) if rule.pattern.match(name))
        for name in stored
    }
    if not all(hits.values()):
        return None
    unknown = tuple(name for name in facts(layout) if name not in env)
    if len(unknown) > MAX_FACTS:
        return None
    found: dict[frozenset[int], dict[str, bool]] = {}
    for values in product((False, True), repeat=len(unknown)):
        chosen = dict(zip(unknown, values, strict=True))
        active = _active(layout, {**env, **chosen})
        if active is not None and _explains(layout, active, hits.values()):
            found.setdefault(active, chosen)
    if len(found) != 1:
        return None
    return Fit(layout, next(iter(found.values())))


def facts(layout: Layout) -> tuple[str, ...]:
    """Every name that the conditions of a layout ask for."""
    asked = (name for rule in layout.rules if rule.when is not None for name in names(rule.when))
    return tuple(dict.fromkeys(asked))


def _active(layout: Layout, env: Mapping[str, object]) -> frozenset[int] | None:
    try:
        return frozenset(
            index
            for index, rule in enumerate(layout.rules)
            if rule.when is None or evaluate(rule.when, env)
        )
    except ReshardError:
        return None


def _explains(layout: Layout, active: frozenset[int], hits: Iterable[tuple[int, ...]]) -> bool:
    """Whether every name has one active rule, and every active rule that must have one a name."""
    used = set()
    for indices in hits:
        chosen = [index for index in indices if index in active]
        if len(chosen) != 1:
            return False
        used.add(chosen[0])
    return all(index in used or layout.rules[index].optional for index in active)
