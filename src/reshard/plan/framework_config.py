"""A framework's own configuration, from what is known of the model: `config` lines read backwards.

config num_hidden_layers   = args.num_layers                      args.num_layers = 12
config tie_word_embeddings = not args.untie_embeddings            args.untie_embeddings = false
config head_dim            = head_dim or hidden_size / heads      head_dim = 64
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeGuard

from reshard.language.conditions import constant
from reshard.language.expression import (
    Binary,
    Conditional,
    Expression,
    Integer,
    Text,
    Truth,
    Unary,
    Variable,
    names,
    operands,
)
from reshard.language.layout import Layout
from reshard.plan.model_values import model_names, solve_size


def framework_config(
    layout: Layout,
    values: Mapping[str, object],
    accepts: Callable[[Mapping[str, object]], bool] = lambda found: True,
) -> dict[str, object]:
    """What the framework of a layout calls the sizes and facts of a model.

    A line is read backwards through its first alternative: of `a or b` that is `a`. What has no
    value, and a line that cannot be read backwards, give nothing. Of what the layout says that its
    checkpoints are (`layout hf of m when model_type == "m"`), the first alternative that agrees
    with the model holds.

    Args:  values: by the model's names (`Arrangement.values`).
           accepts: whether an alternative will do; the first that agrees holds if none does.
    Returns: nested as the dots of the names say: `{"args": {"num_layers": 12}}`.
    """
    out: dict[str, object] = {}
    for name, expression in layout.config.items():
        if values.get(name) is not None:
            assign(expression, values[name], out)
    for name, expression in layout.config.items():
        if values.get(name) is not None and isinstance(expression, Conditional):
            assign(expression, values[name], out)  # another line may tell its condition
        elif values.get(name) is not None and len(names(expression)) > 1:
            _solve(expression, values[name], out)
    found = []
    for alternative in operands("or", layout.when):
        if _is_so(alternative, layout, values):
            more: dict[str, object] = {}
            for part in operands("and", alternative):
                if not _is_known(part, layout, values):
                    _assume(part, more)
            if _agree(out, more):
                found.append(more)
    if found:
        _merge(out, next((item for item in found if accepts(item)), found[0]))
    return out


def can_be(layout: Layout, values: Mapping[str, object]) -> bool:
    """Whether a layout is of models like this one, by what its condition says of the model."""
    alternatives = operands("or", layout.when)
    return not alternatives or any(_is_so(item, layout, values) for item in alternatives)


def _agree(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether no value is one thing here and another there."""
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if not _agree(a, b):
                return False
        elif a != b:
            return False
    return True


def _merge(out: dict[str, object], more: Mapping[str, object]) -> None:
    for name, value in more.items():
        inner = out.get(name)
        if isinstance(inner, dict) and isinstance(value, Mapping):
            _merge(inner, value)
        else:
            out[name] = value


def _is_so(alternative: Expression, layout: Layout, values: Mapping[str, object]) -> bool:
    """Whether all that an alternative says of the model itself is so."""
    known = {name: value for name, value in values.items() if value is not None}
    env = {**dict.fromkeys(_own_names(layout), False), **known}
    return all(
        constant(part, env) is True
        for part in operands("and", alternative)
        if _is_known(part, layout, values)
    )


def _is_known(part: Expression, layout: Layout, values: Mapping[str, object]) -> bool:
    """Whether a condition is of the model, and not of how a framework spells it."""
    known = {*values, *_own_names(layout)}
    return all(name in known for name in names(part))


def _own_names(layout: Layout) -> frozenset[str]:
    return frozenset((*layout.config, *(model_names(layout.model) if layout.model else ())))


def _assume(part: Expression, out: dict[str, object]) -> None:
    """Put into a configuration what makes a condition hold."""
    if (
        isinstance(part, Binary)
        and part.operator == "=="
        and isinstance(part.left, Variable)
        and isinstance(part.right, (Integer, Text, Truth))
    ):
        _store(part.left.name.split("."), part.right.value, out)
    else:
        assign(part, True, out)


def assign(expression: Expression, value: object, out: dict[str, object]) -> None:
    """Put into a configuration what gives an expression a value, where that is one name's."""
    if isinstance(expression, Variable):
        _store(expression.name.split("."), value, out)
    elif isinstance(expression, Unary) and expression.operator == "not":
        if isinstance(value, int):  # a truth, or a 0 or 1 that the user set
            assign(expression.operand, not value, out)
    elif isinstance(expression, Binary) and expression.operator == "or":
        assign(expression.left, value, out)
    elif isinstance(expression, Binary) and expression.operator == "==" and value is True:
        left, right = expression.left, expression.right
        if isinstance(left, Variable) and isinstance(right, Text):
            _store(left.name.split("."), right.value, out)
    elif isinstance(expression, Conditional):
        is_so = constant(expression.condition, _flat(out))
        if isinstance(is_so, bool):
            assign(expression.then if is_so else expression.otherwise, value, out)
    elif len(names(expression)) == 1:
        _solve(expression, value, out)


def _solve(expression: Expression, value: object, out: dict[str, object]) -> None:
    """Put into a configuration the one size of an expression that it does not have yet."""
    known = _flat(out)
    is_arithmetic = isinstance(expression, Binary) and expression.operator in "+-*/"
    if not is_arithmetic or not is_size(value) or len({*names(expression)} - {*known}) != 1:
        return
    found = dict(known)
    solve_size(expression, value, found)
    for name in found.keys() - known.keys():
        _store(name.split("."), found[name], out)


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{prefix}{name}."))
        else:
            out[f"{prefix}{name}"] = value
    return out


def is_size(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, and no truth."""
    return isinstance(value, int) and not isinstance(value, bool)


def _store(path: list[str], value: object, out: dict[str, object]) -> None:
    *outer, last = path
    for part in outer:
        inner = out.setdefault(part, {})
        assert isinstance(inner, dict), f"`{'.'.join(path)}` is both a value and a group of values"
        out = inner
    out.setdefault(last, value)
