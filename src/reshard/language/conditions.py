"""When rules apply, as far as the text alone tells: conditions as sets of what must hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reshard.errors import ReshardError
from reshard.language.expression import Binary, Expression, Value, evaluate, names

Conditions = frozenset[Expression]
"""Expressions that must all hold; empty for always."""


def conjuncts(condition: Expression | None) -> Conditions:
    """The conditions that `and` joins."""
    if condition is None:
        return frozenset()
    if isinstance(condition, Binary) and condition.operator == "and":
        return conjuncts(condition.left) | conjuncts(condition.right)
    return frozenset({condition})


def conjunction(conditions: Iterable[Expression | None]) -> Expression | None:
    """One condition that says them all, each once; None for always."""
    out: Expression | None = None
    said: Conditions = frozenset()
    for condition in conditions:
        if condition is None or conjuncts(condition) <= said:
            continue
        said |= conjuncts(condition)
        out = condition if out is None else Binary("and", out, condition, condition.span)
    return out


def constant(expression: Expression | None, env: Mapping[str, object]) -> Value | None:
    """The value of an expression that needs nothing but `env`; None if there is none."""
    if expression is None or not all(name in env for name in names(expression)):
        return None
    try:
        return evaluate(expression, env)
    except ReshardError:
        return None
