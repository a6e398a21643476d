"""What is known of a model, by the names that the model itself uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reshard.language.expression import Binary, Expression, Integer, Unary, Variable, names
from reshard.language.layout import Layout, Model


def model_values(
    layout: Layout, env: Mapping[str, object], sizes: Mapping[str, int]
) -> dict[str, object]:
    """Every size and fact of the model that a checkpoint tells.

    Args:  layout: of the model, through which the checkpoint was read.
           env: of that layout (`plan.environment`).
           sizes: by axis, as the stored tensors show them; they win over the configuration.
    """
    model = layout.model
    assert model is not None
    asked = dict.fromkeys((*layout.config, *model_names(model)))
    values = {name: env[name] for name in asked if env.get(name) is not None}
    for _ in model.axes:  # a size that needs another one is found in a later round
        for axis in model.axes.values():
            if axis.size is not None and axis.name in sizes:
                solve_size(axis.size, sizes[axis.name], values)
    return values


def model_names(model: Model) -> Iterable[str]:
    """What the sizes and conditions of a model ask for."""
    for axis in model.axes.values():
        if axis.size is not None:
            yield from names(axis.size)
    for tensor in model.tensors.values():
        if tensor.when is not None:
            yield from names(tensor.when)
        if tensor.only is not None:
            yield from (name for name in names(tensor.only) if name != tensor.along)


def solve_size(expression: Expression, size: int, values: dict[str, object]) -> None:
    """Give the one name of `expression == size` its value, where it is alone and solvable."""
    if isinstance(expression, Variable):
        values[expression.name] = size
        return
    if not isinstance(expression, Binary):
        return
    left, right = expression.left, expression.right
    known_left, known_right = _number(left, values), _number(right, values)
    if known_right is not None:
        inverse = {"/": size * known_right, "+": size - known_right, "-": size + known_right}
        if expression.operator == "*" and known_right and size % known_right == 0:
            solve_size(left, size // known_right, values)
        elif expression.operator in inverse:
            solve_size(left, inverse[expression.operator], values)
    elif known_left is not None:
        if expression.operator == "*" and known_left and size % known_left == 0:
            solve_size(right, size // known_left, values)
        elif expression.operator == "+":
            solve_size(right, size - known_left, values)
        elif expression.operator == "-":
            solve_size(right, known_left - size, values)
        elif expression.operator == "/" and size and known_left % size == 0:
            solve_size(right, known_left // size, values)


def _number(expression: Expression, values: Mapping[str, object]) -> int | None:
    if isinstance(expression, Integer):
        return expression.value
    if isinstance(expression, Unary):
        return None
    if isinstance(expression, Variable):
        value = values.get(expression.name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    return None
