"""Expressions: sizes and conditions over integers, strings, and truth values.

A real number, such as the epsilon of a norm, can be named, compared with another, and nothing else.
A list of a configuration can be asked for an item, and whether it has one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeGuard

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


@dataclass(frozen=True, slots=True)
class Member:
    """Whether a list has an item: `layer in attn_layer_indices`."""

    item: Expression
    members: Variable
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a list, counted from 0: `layer_types[layer]`."""

    items: Variable
    index: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Conditional:
    """`a if condition else b`."""

    condition: Expression
    then: Expression
    otherwise: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


Expression = Integer | Text | Truth | Variable | Unary | Binary | Member | Item | Conditional

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


def parts(expression: Expression) -> tuple[Expression, ...]:
    """The expressions that one is made of, in order of appearance; () for a leaf."""
    if isinstance(expression, Unary):
        return (expression.operand,)
    if isinstance(expression, Binary):
        return expression.left, expression.right
    if isinstance(expression, Member):
        return expression.item, expression.members
    if isinstance(expression, Item):
        return expression.items, expression.index
    if isinstance(expression, Conditional):
        return expression.then, expression.condition, expression.otherwise
    return ()


def variables(expression: Expression) -> tuple[Variable, ...]:
    """Every place in an expression where a name stands, in order."""
    if isinstance(expression, Variable):
        return (expression,)
    return tuple(found for part in parts(expression) for found in variables(part))


def lists(expression: Expression) -> frozenset[str]:
    """The names in an expression that are of lists."""
    own: tuple[str, ...] = ()
    if isinstance(expression, Member):
        own = (expression.members.name,)
    elif isinstance(expression, Item):
        own = (expression.items.name,)
    return frozenset(own).union(*(lists(part) for part in parts(expression)))


def can_be_inverted(expression: Expression, known: Collection[str] = ()) -> bool:
    """Whether a value of an expression says what a name in it is; one without names says what is
    always so.

    Args:  known: names whose values are known otherwise.
    """
    if isinstance(expression, Unary):
        return can_be_inverted(expression.operand, known)
    if isinstance(expression, Conditional):
        branches = (expression.then, expression.otherwise)
        return all(can_be_inverted(branch, known) for branch in branches)
    if isinstance(expression, Member | Item):
        return False
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
    if isinstance(expression, Member):
        item = _value(expression.item, env)
        members = _list(expression.members, env)
        return any(type(item) is type(other) and item == other for other in members)
    if isinstance(expression, Item):
        return _item(expression, env)
    if isinstance(expression, Conditional):
        asked = expression.condition
        is_so = _truth(asked, _value(asked, env), "if")
        return _value(expression.then if is_so else expression.otherwise, env)
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
    elif isinstance(expression, Member):
        level = PRECEDENCE["=="]
        text = f"{to_text(expression.item, level + 1)} in {expression.members.name}"
    elif isinstance(expression, Item):
        return f"{expression.items.name}[{to_text(expression.index)}]"
    elif isinstance(expression, Conditional):
        level = 0
        then, condition = to_text(expression.then, 1), to_text(expression.condition, 1)
        text = f"{then} if {condition} else {to_text(expression.otherwise)}"
    else:
        level = PRECEDENCE[expression.operator]
        # comparisons do not chain, so their left operand must bind tighter too
        left = to_text(expression.left, level + (expression.operator in COMPARISONS))
        text = f"{left} {expression.operator} {to_text(expression.right, level + 1)}"
    return f"({text})" if level < least else text


def config_value(expression: Expression, env: Mapping[str, object]) -> object:
    """What a `config` line says of a size or of a list; None where it asks for what has no value.

    Raises: wrong-type, inexact-division.
    """
    if isinstance(expression, Variable):
        value = _look_up(expression.name, env)
        if is_list(value):
            return value
    if isinstance(expression, Binary) and expression.operator == "or":
        left = config_value(expression.left, env)
        if is_list(left):
            return left
        right = config_value(expression.right, env) if left is None or left is False else None
        if is_list(right):
            return right
    return known_value(expression, env)


def is_list(value: object) -> TypeGuard[Sequence[Value]]:
    """Whether a value is a list of numbers, strings, and truths."""
    return isinstance(value, list | tuple) and all(
        isinstance(item, int | str | float) for item in value
    )


def _list(variable: Variable, env: Mapping[str, object]) -> Sequence[Value]:
    value = _look_up(variable.name, env)
    if value is None:
        raise _NoValue(variable)
    if not is_list(value):
        raise layout_error(
            "wrong-type",
            f"`{variable.name}` is no list of numbers, strings, or truths",
            primary=_label(variable, f"this is {_shown(value)}"),
        )
    return value


def _item(expression: Item, env: Mapping[str, object]) -> Value:
    items = _list(expression.items, env)
    index = _number(expression.index, _value(expression.index, env), "[]")
    if not 0 <= index < len(items):
        raise layout_error(
            "no-such-item",
            f"`{to_text(expression)}` is item {index} of a list of {len(items)}",
            notes=["items are counted from 0"],
            primary=_label(expression, "no such item"),
        )
    return items[index]


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
