"""Map the numbered states of an optimizer to the names of parameters.

`Optimizer.state_dict()` numbers parameters group by group, in the order in which they were given.
That order is the model's within every group; the shapes tell which parameters a group has.
Parameters that the optimizer does not have (frozen ones, buffers) are passed over. Names are given
only where there is one way.
Source: torch/optim/optimizer.py `Optimizer.state_dict` (torch 2.13).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from reshard.errors import ReshardError, source_error

Shape = tuple[int, ...]
_MEAN, _VARIANCE = "running_mean", "running_var"
_DIGITS = re.compile(r"[0-9]+")
_Way = tuple[int | None, ...]
"""For each parameter its number; None for one that the optimizer does not have."""


def names_of_numbers(
    groups: Sequence[Sequence[int]],
    shapes: Mapping[int, Shape],
    parameters: Sequence[tuple[str, Shape]],
    where: str,
    *,
    is_ordered: bool = True,
) -> dict[int, str]:
    """The name of every number.

    Args:  groups: the numbers of each param group.  shapes: of the states that are shaped like
           their parameter, by number.  parameters: of the model, in its order.
           is_ordered: whether that order is the model's; a file that sorts its names tells none.
    Raises: ReshardError[ambiguous-optimizer-ids].
    """
    statistics = running_statistics([name for name, _ in parameters])
    parameters = [item for item in parameters if item[0] not in statistics]
    numbers = [number for group in groups for number in group]
    if len(set(numbers)) != len(numbers) or len(numbers) > len(parameters):
        raise _unclear(
            where,
            f"the optimizer numbers {len(numbers)} parameters, and the model has {len(parameters)}",
        )
    if not is_ordered:
        return _by_shapes(numbers, shapes, parameters, where)
    orders = _ways([tuple(group) for group in groups], shapes, parameters)
    if not orders:
        stored = {shape for _, shape in parameters}
        alone = [number for number in numbers if shapes.get(number, ()) not in stored | {()}]
        why = "no order of the model's parameters fits the shapes of the states"
        if alone:
            number = alone[0]
            why = (
                f"number {number} has a state of shape {list(shapes[number])}, and no parameter "
                "has that shape; names are given by shapes, and factored states have others"
            )
        raise _unclear(where, why, helps=NAMES_ONLY if alone else _HELPS)
    if len(orders) > 1:
        why = "several orders of the model's parameters fit the shapes"
        raise _unclear(where, why, _difference(orders, parameters))
    return {
        number: name
        for number, (name, _) in zip(orders[0], parameters, strict=True)
        if number is not None
    }


def running_statistics(names: Collection[str]) -> set[str]:
    """The buffers of normalizations over a batch, which no optimizer trains.

    Source: torch/nn/modules/batchnorm.py `_NormBase` (2.13).
    """
    stems = {name.removesuffix(_MEAN) for name in names if name.endswith(_MEAN)}
    return {
        f"{stem}{last}"
        for stem in stems
        if f"{stem}{_VARIANCE}" in names
        for last in (_MEAN, _VARIANCE, "num_batches_tracked")
        if f"{stem}{last}" in names
    }


def looks_sorted(names: Sequence[str]) -> bool:
    """Whether names stand in the order of their letters, as no module registers its parameters.

    Names that differ in numbers alone are in that order in any case.
    """
    kinds = {_DIGITS.sub("0", name) for name in names}
    return len(kinds) > 1 and list(names) == sorted(names)


def _by_shapes(
    numbers: Sequence[int],
    shapes: Mapping[int, Shape],
    parameters: Sequence[tuple[str, Shape]],
    where: str,
) -> dict[int, str]:
    """Names where every shape is that of one parameter alone."""
    counts = Counter(shape for _, shape in parameters)
    by_shape = {shape: name for name, shape in parameters if counts[shape] == 1}
    out: dict[int, str] = {}
    for number in numbers:
        shape = shapes.get(number)
        if shape not in by_shape:
            candidates = [name for name, other in parameters if shape in (None, other)]
            names = ", ".join(f"`{name}`" for name in candidates[:4]) or "none"
            more = f", or one of {len(candidates) - 4} more" if len(candidates) > 4 else ""
            size = "no shape" if shape is None else f"shape {list(shape)}"
            raise _unclear(
                where,
                "the file of the weights sorts their names, so the model's order is not known",
                f"number {number} has {size}: it may be {names}{more}",
            )
        out[number] = by_shape[shape]
    if len(set(out.values())) != len(out):
        raise _unclear(where, "two numbers have the shape of one parameter")
    return out


def _ways(
    groups: list[tuple[int, ...]],
    shapes: Mapping[int, Shape],
    parameters: Sequence[tuple[str, Shape]],
) -> list[_Way]:
    """Give the parameters to the groups one after the other; at most two ways are looked for.

    A state of how far each group has come is visited once: from there the rest is the same.
    """
    start = tuple(0 for _ in groups)
    spare = len(parameters) - sum(map(len, groups))
    # For each parameter, from each state: the numbers that it may have, filled from the end.
    layers: list[dict[tuple[int, ...], list[tuple[int | None, tuple[int, ...]]]]] = []
    states = {start}
    for position, (_, shape) in enumerate(parameters):
        layer: dict[tuple[int, ...], list[tuple[int | None, tuple[int, ...]]]] = {}
        after: set[tuple[int, ...]] = set()
        for state in states:
            steps: list[tuple[int | None, tuple[int, ...]]] = []
            if position - sum(state) < spare:
                steps.append((None, state))
            for at, taken in enumerate(state):
                if taken < len(groups[at]):
                    number = groups[at][taken]
                    if shapes.get(number, shape) == shape:
                        steps.append((number, (*state[:at], taken + 1, *state[at + 1 :])))
            after.update(new for _, new in steps)
            layer[state] = steps
        layers.append(layer)
        states = after
    alive = {state for state in states if sum(state) == len(parameters) - spare}
    for layer in reversed(layers):
        for state, steps in layer.items():
            layer[state] = [step for step in steps if step[1] in alive]
        alive = {state for state, steps in layer.items() if steps}
    todo: list[tuple[tuple[int, ...], _Way]] = [(start, ())] if start in alive or not layers else []
    orders: list[_Way] = []
    while todo and len(orders) < 2:
        state, order = todo.pop()
        if len(order) == len(parameters):
            orders.append(order)
            continue
        for index, new in layers[len(order)][state]:
            todo.append((new, (*order, index)))
    return orders


def _difference(orders: Sequence[_Way], parameters: Sequence[tuple[str, Shape]]) -> str:
    """The first number that has two names."""
    first, second = (
        {number: name for number, (name, _) in zip(way, parameters, strict=True)} for way in orders
    )
    both = {number for number in (*first, *second) if number is not None}
    number = min(item for item in both if first.get(item) != second.get(item))
    return f"number {number} may be `{first.get(number)}` or `{second.get(number)}`"


_SAVE = (
    "load it where it was trained, and save it with "
    "`torch.distributed.checkpoint.state_dict.get_state_dict`"
)
_HELPS = ("leave the states out with `--states weights`", f"or {_SAVE}")
NAMES_ONLY = (_SAVE, "or leave the states out with `--states weights`")
"""What to do where no order of the parameters would give names."""


def _unclear(where: str, *why: str, helps: Sequence[str] = _HELPS) -> ReshardError:
    return source_error(
        "ambiguous-optimizer-ids",
        f"the optimizer states in {where} cannot be given names",
        notes=[*why, "`Optimizer.state_dict()` numbers parameters and does not name them"],
        helps=helps,
    )
