"""Expressions with names replaced, and what then is known worked out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from reshard.errors import ReshardError
from reshard.language.expression import (
    Binary,
    Conditional,
    Expression,
    Integer,
    Item,
    Member,
    Text,
    Truth,
    Unary,
    Value,
    Variable,
    evaluate,
    names,
    operands,
)


def renamed(expression: Expression, change: Callable[[Variable], Expression]) -> Expression:
    """An expression with another one in place of each name."""
    if isinstance(expression, Variable):
        return change(expression)
    return _chained(_rebuilt(expression, lambda part: renamed(part, change)))


def _chained(expression: Expression) -> Expression:
    """`a and (b and c)`, which a name that stands for `b and c` makes, as `a and b and c`."""
    if not isinstance(expression, Binary) or expression.operator not in ("and", "or"):
        return expression
    *before, last = operands(expression.operator, expression)
    out = before[0]
    for part in (*before[1:], last):
        out = Binary(expression.operator, out, part, expression.span)
    return out


def _rebuilt(expression: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """An expression of changed parts; the name of a list stays where it would be no name."""
    if isinstance(expression, Unary):
        return replace(expression, operand=change(expression.operand))
    if isinstance(expression, Binary):
        return replace(expression, left=change(expression.left), right=change(expression.right))
    if isinstance(expression, Conditional):
        return replace(
            expression,
            condition=change(expression.condition),
            then=change(expression.then),
            otherwise=change(expression.otherwise),
        )
    if isinstance(expression, Member):
        members = change(expression.members)
        known = members if isinstance(members, Variable) else expression.members
        return replace(expression, item=change(expression.item), members=known)
    if isinstance(expression, Item):
        items = change(expression.items)
        known = items if isinstance(items, Variable) else expression.items
        return replace(expression, items=known, index=change(expression.index))
    return expression


def with_values(expression: Expression, values: Mapping[str, Value]) -> Expression:
    """An expression with the values of some of its names in their place, as short as it then is."""
    if isinstance(expression, Variable) and expression.name in values:
        return _constant(values[expression.name], expression)
    found = _rebuilt(expression, lambda part: with_values(part, values))
    if isinstance(found, Binary) and found.operator in ("and", "or"):
        deciding = found.operator == "or"
        for one, other in ((found.left, found.right), (found.right, found.left)):
            if isinstance(one, Truth):
                return one if one.value is deciding else other
    if isinstance(found, Conditional) and isinstance(found.condition, Truth):
        return found.then if found.condition.value else found.otherwise
    return _evaluated(found)


def _evaluated(expression: Expression) -> Expression:
    if names(expression):
        return expression
    try:
        return _constant(evaluate(expression, {}), expression)
    except ReshardError:
        return expression  # the checks say what is wrong with it


def _constant(value: Value, expression: Expression) -> Expression:
    if isinstance(value, bool):
        return Truth(value, expression.span)
    if isinstance(value, int) and value >= 0:
        return Integer(value, expression.span)
    if isinstance(value, int):
        return Unary("-", Integer(-value, expression.span), expression.span)
    return Text(value, expression.span) if isinstance(value, str) else expression
