"""Numbers that say at which indices atoms are there, from the names that are stored.

A model with experts in some of its layers says which by numbers, such as how many layers come
before the first of them. A configuration that does not tell these leaves the names to do so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from reshard.algebra.term import Leaf
from reshard.errors import ReshardError
from reshard.language.expression import evaluate, lists, names
from reshard.language.layout import Layout, Rule
from reshard.plan.bind_model import global_indices, named_cuts
from reshard.plan.catalog import Catalog
from reshard.plan.fit_lists import solve_lists
from reshard.plan.index_limit import refuse_many
from reshard.plan.matching import Matched, active_rules
from reshard.plan.stored_names import StoredNames
from reshard.run.states import EXTRA, PARAM

MAX_TRIES = 20_000
"""Choices of the numbers that are tried; a layout that needs more does not fit."""

Seen = dict[int, set[frozenset[int]]]
"""By index: the rules that each name may follow that is stored there."""


def solve_indices(
    layout: Layout,
    catalog: Catalog,
    stored: StoredNames,
    hits: Mapping[str, tuple[int, ...]],
    env: Mapping[str, object],
) -> dict[str, object] | None:
    """The numbers and lists under which every tensor is stored where its atom is; None if there
    are none.

    Of several choices that put the same atoms at the same indices, the one of the least numbers.

    Args:  hits: the rules that match, by name or by the first name of its kind.
    Raises: what finding the cuts of the axes raises.
    """
    rules = {i: rule for i in active_rules(layout, env) if (rule := layout.rules[i]).only}
    asked = dict.fromkeys(n for rule in rules.values() if rule.only for n in names(rule.only))
    along = {rule.along for rule in rules.values()}
    named = {name for rule in rules.values() if rule.only for name in lists(rule.only)}
    missing = [name for name in asked if name not in env and name not in along]
    unknown = [name for name in missing if name not in named]
    if not missing:
        return {}
    if len(along) > 1:
        return None
    axis = along.pop()
    seen, size = _seen(layout, catalog, stored, hits, env, rules, axis)
    if size ** len(unknown) > MAX_TRIES:
        return None
    for numbers in product(range(size), repeat=len(unknown)):
        chosen: dict[str, object] = dict(zip(unknown, numbers, strict=True))
        known = {**env, **chosen}
        found = solve_lists([x for x in missing if x in named], rules, seen, size, known)
        if found is not None and _explains(rules, seen, size, {**known, **found}):
            return {**chosen, **found}
    return None


def _seen(
    layout: Layout,
    catalog: Catalog,
    stored: StoredNames,
    hits: Mapping[str, tuple[int, ...]],
    env: Mapping[str, object],
    rules: Mapping[int, Rule],
    axis: str,
) -> tuple[Seen, int]:
    model = layout.model
    assert model is not None
    active = set(active_rules(layout, env))
    chosen = {name: [index for index in found if index in active] for name, found in hits.items()}
    known: dict[object, tuple[Matched, frozenset[int]]] = {}
    for tensor in catalog.tensors:
        if tensor.state == EXTRA or not (tensor.shape or tensor.state == PARAM):
            continue
        found = chosen.get(tensor.name) or chosen[stored.every[tensor.name]]
        if not found:
            continue  # another name of a tied tensor, which has a rule
        match = layout.rules[found[0]].pattern.match(tensor.name)
        if match is not None:  # of many experts of a layer, one tells where all of them are
            key = (*found, tensor.coord, match.indices.get(axis))
            known.setdefault(key, (Matched(tensor, found[0], match), frozenset(found)))
    items = list(known.values())
    mesh = {**dict.fromkeys(layout.mesh, 1), **catalog.mesh}
    cuts = named_cuts(layout, model, [item for item, _ in items], mesh, env, (axis,))
    size = cuts[axis].size if axis in cuts else _stacked(layout, [i for i, _ in items], axis)
    refuse_many(axis, size)
    seen: Seen = {index: set() for index in range(size)}
    for item, followed in items:
        if followed <= rules.keys():
            whole = axis not in item.match.indices
            indices = range(size) if whole else [global_indices(layout, item, cuts, mesh)[axis]]
            for index in indices:
                seen.setdefault(index, set()).add(followed)
    return seen, size


def _stacked(layout: Layout, items: Sequence[Matched], axis: str) -> int:
    """The size of an axis that is a dimension of its own; 0 if it is none."""
    for item in items:
        for dim, term in enumerate(layout.rules[item.rule].dims):
            if term == Leaf(axis) and dim < len(item.tensor.shape):
                return item.tensor.shape[dim]
    return 0


def _explains(rules: Mapping[int, Rule], seen: Seen, size: int, env: Mapping[str, object]) -> bool:
    """Whether at every index the rules whose atoms are there are those of the names, one each."""
    for index in range(size):
        here = set()
        for number, rule in rules.items():
            assert rule.only is not None
            try:
                if evaluate(rule.only, {**env, rule.along: index}) is True:
                    here.add(number)
            except ReshardError:
                return False
        met = [found & here for found in seen[index]]
        if any(len(one) != 1 for one in met) or here != set().union(*met):
            return False
    return True
