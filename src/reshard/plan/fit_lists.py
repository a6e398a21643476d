"""Lists that say at which indices atoms are there, from the names that are stored.

`when layer in attn_layers` and `when layer_types[layer] == "full"` are of one layer each, so that
every layer tells its own part of the list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, product

from reshard.errors import ReshardError
from reshard.language.expression import (
    Binary,
    Expression,
    Integer,
    Item,
    Member,
    Text,
    Truth,
    Value,
    Variable,
    evaluate,
    parts,
)
from reshard.language.layout import Rule

MAX_TRIES = 1000
"""Choices that are tried at one index."""


def solve_lists(
    unknown: Sequence[str],
    rules: Mapping[int, Rule],
    seen: Mapping[int, set[frozenset[int]]],
    size: int,
    env: Mapping[str, object],
) -> dict[str, object] | None:
    """The lists under which every tensor is stored where its atom is; None if there are none.

    A list of members has the indices at which it must; a list of items has one of the values that
    conditions compare it with.

    Args:  unknown: names of lists.  rules: that are there at some indices.
           seen: by index, the rules that each name may follow that is stored there.
    """
    if not unknown:
        return {}
    conditions = [rule.only for rule in rules.values() if rule.only is not None]
    along = {rule.along for rule in rules.values()}
    choices: dict[str, list[Value]] = {}
    for name in unknown:
        compared = [value for item in conditions for value in _compared(item, name, along)]
        is_members = any(_has_members(item, name, along) for item in conditions)
        if is_members == bool(compared):
            return None  # neither, or both
        choices[name] = [False, True] if is_members else list(dict.fromkeys(compared))
    members = {name for name in unknown if choices[name] == [False, True]}
    out: dict[str, list[Value]] = {name: [] for name in unknown}
    for index in range(size):
        chosen = _at(index, choices, members, rules, seen.get(index, set()), size, env)
        if chosen is None:
            return None
        for name, value in chosen.items():
            if name not in members:
                out[name].append(value)
            elif value is True:
                out[name].append(index)
    return dict(out)


def _at(
    index: int,
    choices: Mapping[str, Sequence[Value]],
    members: set[str],
    rules: Mapping[int, Rule],
    seen: set[frozenset[int]],
    size: int,
    env: Mapping[str, object],
) -> dict[str, Value] | None:
    """What the lists say of one index; None where nothing that they may say explains its names."""
    for values in islice(product(*choices.values()), MAX_TRIES):
        chosen = dict(zip(choices, values, strict=True))
        here = set()
        tried = {
            name: ([index] if value is True else []) if name in members else [value] * size
            for name, value in chosen.items()
        }
        for number, rule in rules.items():
            assert rule.only is not None
            try:
                if evaluate(rule.only, {**env, **tried, rule.along: index}) is True:
                    here.add(number)
            except ReshardError:
                return None
        met = [found & here for found in seen]
        if all(len(one) == 1 for one in met) and here == set().union(*met):
            return chosen
    return None


def _compared(expression: Expression, name: str, along: set[str]) -> list[Value]:
    """The values that an item of a list is compared with, at the index that is asked about."""
    out: list[Value] = []
    if isinstance(expression, Binary) and expression.operator in ("==", "!="):
        item, value = expression.left, expression.right
        is_it = isinstance(item, Item) and item.items.name == name and _is_index(item.index, along)
        if is_it and isinstance(value, Integer | Text | Truth):
            out.append(value.value)
    for part in parts(expression):
        out += _compared(part, name, along)
    return out


def _has_members(expression: Expression, name: str, along: set[str]) -> bool:
    if isinstance(expression, Member) and expression.members.name == name:
        return _is_index(expression.item, along)
    return any(_has_members(part, name, along) for part in parts(expression))


def _is_index(expression: Expression, along: set[str]) -> bool:
    return isinstance(expression, Variable) and expression.name in along
