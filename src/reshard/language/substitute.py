"""Expressions with names replaced, and what then is known worked out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from reshard.errors import ReshardError
from reshard.language.expression import (
    Binary,
    Expression,
    Integer,
    Text,
    Truth,
    Unary,
    Value,
    Variable,
    evaluate,
    names,
)


def renamed(expression: Expression, change: Callable[[Variable], Expression]) -> Expression:
    """An expression with another one in place of each name."""
    if isinstance(expression, Variable):
        return change(expression)
    if isinstance(expression, Unary):
        return replace(expression, operand=renamed(expression.operand, change))
    if isinstance(expression, Binary):
        left, right = renamed(expression.left, change), renamed(expression.right, change)
        return replace(expression, left=left, right=right)
    return expression


def with_values(expression: Expression, values: Mapping[str, Value]) -> Expression:
    """An expression with the values of some of its names in their place, as short as it then is."""
    if isinstance(expression, Variable) and expression.name in values:
        return _constant(values[expression.name], expression)
    if isinstance(expression, Unary):
        return _evaluated(replace(expression, operand=with_values(expression.operand, values)))
    if not isinstance(expression, Binary):
        return expression
    left = with_values(expression.left, values)
    right = with_values(expression.right, values)
    if expression.operator in ("and", "or"):
        deciding = expression.operator == "or"
        for one, other in ((left, right), (right, left)):
            if isinstance(one, Truth):
                return one if one.value is deciding else other
    return _evaluated(replace(expression, left=left, right=right))


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
