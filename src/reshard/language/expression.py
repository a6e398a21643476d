"""Expressions: sizes and conditions over integers, strings, and truth values.

A real number, such as the epsilon of a norm, can be named, compared with another, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from reshard.errors import Label, ReshardError, Span, layout_error

Value = int | bool | str | float


@dataclass(frozen=True, slots=True)
class Integer:
    """A number, >= 0; a negative one is a `Unary`."""

    value: int
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A string, without its quotes and escapes."""

    value: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Truth:
    """`true` or `false`."""

    value: bool
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Variable:
    """A name, dots included: `args.num_layers`."""

    name: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unary:
    """`-` or `not` before an operand."""

    operator: str
    operand: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """Two operands with one of the operators of `PRECEDENCE` between them."""

    operator: str
    left: Expression
    right: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


Expression = Integer | Text | Truth | Variable | Unary | Binary

COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">="})

PRECEDENCE: Mapping[str, int] = {
    "or": 1,
    "and": 2,
    **dict.fromkeys(COMPARISONS, 4),
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
    "%": 6,
}
"""How tightly the operators of two operands bind; `not` is 3 and a sign is 7."""

NOT_PRECEDENCE = 3
PRODUCT_PRECEDENCE = 6
SIGN_PRECEDENCE = 7


def names(expression: Expression) -> tuple[str, ...]:
    """Every name in an expression, in order of appearance, each once."""
    return tuple(dict.fromkeys(variable.name for variable in variables(expression)))


def operands(operator: str, expression: Expression | None) -> tuple[Expression, ...]:
    """What `and`, or `or`, joins, in order; () for no expression."""
    if expression is None:
        return ()
    if isinstance(expression, Binary) and expression.operator == operator:
        return operands(operator, expression.left) + operands(operator, expression.right)
    return (expression,)


def variables(expression: Expression) -> tuple[Variable, ...]:
    """Every place in an expression where a name stands, in order."""
    if isinstance(expression, Variable):
        return (expression,)
    if isinstance(expression, Unary):
        return variables(expression.operand)
    if isinstance(expression, Binary):
        return variables(expression.left) + variables(expression.right)
    return ()


def can_be_inverted(expression: Expression, known: Collection[str] = ()) -> bool:
    """Whether a value of an expression says what a name in it is; one without names says what is
    always so.

    Args:  known: names whose values are known otherwise.
    """
    if isinstance(expression, Unary):
        return can_be_inverted(expression.operand, known)
    if not isinstance(expression, Binary):
        return True
    if expression.operator == "or":
        return can_be_inverted(expression.left, known)
    if expression.operator == "==":
        return isinstance(expression.left, Variable) and isinstance(expression.right, Text)
    if expression.operator in ("+", "-", "*", "/"):
        return len({*names(expression)} - {*known}) < 2
    return not variables(expression)


def inverted_names(expression: Expression) -> frozenset[str]:
    """The names that a value of an expression tells."""
    if isinstance(expression, Unary):
        return inverted_names(expression.operand)
    if isinstance(expression, Binary) and expression.operator in ("or", "=="):
        return inverted_names(expression.left)
    found = frozenset(names(expression))
    return found if len(found) == 1 and can_be_inverted(expression) else frozenset()


def evaluate(expression: Expression, env: Mapping[str, object]) -> Value:
    """The value of an expression.

    Args:  env: values by name; a dotted name is looked up whole, then part by part in nested
           mappings. None means that a name is known to have no value.
    Raises: unknown-name, wrong-type, inexact-division.
    """
    try:
        return _value(expression, env)
    except _NoValue as error:
        raise _unknown(error.variable, env) from None


def known_value(expression: Expression, env: Mapping[str, object]) -> Value | None:
    """The value of an expression; None where it asks for a name that has none.

    Args:  env: as for `evaluate`.
    Raises: wrong-type, inexact-division.
    """
    try:
        return _value(expression, env)
    except _NoValue:
        return None


class _NoValue(Exception):  # noqa: N818 - not an error until somebody needs the value
    """A name has no value."""

    def __init__(self, variable: Variable) -> None:
        super().__init__(variable.name)
        self.variable = variable


def _value(expression: Expression, env: Mapping[str, object]) -> Value:
    if isinstance(expression, (Integer, Text, Truth)):
        return expression.value
    if isinstance(expression, Variable):
        value = _look_up(expression.name, env)
        if value is None:
            raise _NoValue(expression)
        if not isinstance(value, (int, str, float)):
            raise layout_error(
                "wrong-type",
                f"`{expression.name}` is neither a number, a string, nor true or false",
                primary=_label(expression, f"this is {_shown(value)}"),
            )
        return value
    if isinstance(expression, Unary):
        operand = _value(expression.operand, env)
        if expression.operator == "not":
            return not _truth(expression.operand, operand, "not")
        return -_number(expression.operand, operand, "-")
    if expression.operator == "or":
        return _either(expression, env)
    if expression.operator == "and":
        left = _truth(expression.left, _value(expression.left, env), "and")
        return left and _truth(expression.right, _value(expression.right, env), "and")
    return _operate(expression, _value(expression.left, env), _value(expression.right, env))


def to_text(expression: Expression, least: int = 0) -> str:
    """Canonical text, in parentheses if the outermost operator binds less tightly than `least`."""
    if isinstance(expression, Integer):
        return str(expression.value)
    if isinstance(expression, Text):
        escaped = expression.value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(expression, Truth):
        return "true" if expression.value else "false"
    if isinstance(expression, Variable):
        return expression.name
    if isinstance(expression, Unary):
        if expression.operator == "not":
            level, text = NOT_PRECEDENCE, f"not {to_text(expression.operand, NOT_PRECEDENCE)}"
        else:
            level, text = SIGN_PRECEDENCE, f"-{to_text(expression.operand, SIGN_PRECEDENCE)}"
    else:
        level = PRECEDENCE[expression.operator]
        # comparisons do not chain, so their left operand must bind tighter too
        left = to_text(expression.left, level + (expression.operator in COMPARISONS))
        text = f"{left} {expression.operator} {to_text(expression.right, level + 1)}"
    return f"({text})" if level < least else text


def _either(expression: Binary, env: Mapping[str, object]) -> Value:
    """`a or b`: b when a is not known, has no value, or is false."""
    try:
        left = _value(expression.left, env)
    except _NoValue:
        return _value(expression.right, env)
    return _value(expression.right, env) if left is False else left


def _operate(expression: Binary, left: Value, right: Value) -> Value:
    operator = expression.operator
    if operator in ("==", "!="):
        if type(left) is not type(right):
            raise layout_error(
                "wrong-type",
                f"`{to_text(expression)}` compares {_shown(left)} with {_shown(right)}",
                primary=_label(expression, "these are never equal"),
            )
        return (left == right) is (operator == "==")
    a = _number(expression.left, left, operator)
    b = _number(expression.right, right, operator)
    if operator == "<":
        return a < b
    if operator == "<=":
        return a <= b
    if operator == ">":
        return a > b
    if operator == ">=":
        return a >= b
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    if b == 0 or (operator == "/" and a % b):
        raise _inexact(expression, a, b)
    return a // b if operator == "/" else a % b


def _look_up(name: str, env: Mapping[str, object]) -> object:
    if name in env:
        return env[name]
    value: object = env
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _known(env: Mapping[str, object], prefix: str = "") -> list[str]:
    out = []
    for key, value in env.items():
        out.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            out += _known(value, f"{prefix}{key}.")
    return out


def _unknown(variable: Variable, env: Mapping[str, object]) -> ReshardError:
    near = get_close_matches(variable.name, [name for name in _known(env) if name != variable.name])
    helps = [f"did you mean `{near[0]}`?"] if near else []
    if "." not in variable.name:
        helps.append(f"give it a value with `--set {variable.name}=...`")
    return layout_error(
        "unknown-name",
        f"`{variable.name}` has no value",
        notes=["it is in neither the checkpoint's configuration nor the command line"],
        helps=helps,
        primary=_label(variable, "no such name"),
    )


def _inexact(expression: Binary, a: int, b: int) -> ReshardError:
    shown = to_text(expression)
    if b == 0:
        fact, label = f"`{shown}` divides {a} by 0", f"{a} {expression.operator} 0"
    else:
        fact, label = f"`{shown}` is not a whole number", f"{a} / {b} leaves remainder {a % b}"
    return layout_error("inexact-division", fact, primary=_label(expression, label))


def _number(expression: Expression, value: Value, operator: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(expression, value, operator, "whole numbers")
    return value


def _truth(expression: Expression, value: Value, operator: str) -> bool:
    """A truth, or the 0 or 1 that `--set` gives for one."""
    if type(value) is int and value in (0, 1) and isinstance(expression, Variable):
        return value == 1
    if not isinstance(value, bool):
        raise _wrong(expression, value, operator, "true or false")
    return value


def _wrong(expression: Expression, value: Value, operator: str, wanted: str) -> ReshardError:
    return layout_error(
        "wrong-type",
        f"`{operator}` works on {wanted}, and `{to_text(expression)}` is {_shown(value)}",
        primary=_label(expression, f"this is {_shown(value)}"),
    )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the string "{value}"' if len(value) <= 40 else "a long string"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        return "a group of values"
    return str(value)


def _label(expression: Expression, text: str) -> Label | None:
    return None if expression.span is None else Label(expression.span, text)
