"""Whose states are those of an optimizer that counts its parameters.

`Optimizer.state_dict()` numbers parameters group by group, in the order in which they were given.
That order is the model's within every group; which parameters a group has is found by their shapes.
Names are given only where there is one way.
Source: torch/optim/optimizer.py `Optimizer.state_dict` (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.errors import ReshardError, source_error

Shape = tuple[int, ...]


def names_of_numbers(
    groups: Sequence[Sequence[int]],
    shapes: Mapping[int, Shape],
    parameters: Sequence[tuple[str, Shape]],
    where: str,
) -> dict[int, str]:
    """The name of every number.

    Args:  groups: the numbers of each param group.  shapes: of the states that are shaped like
           their parameter, by number.  parameters: of the model, in its order.
    Raises: ReshardError[ambiguous-optimizer-ids].
    """
    numbers = [number for group in groups for number in group]
    if len(set(numbers)) != len(numbers) or len(numbers) != len(parameters):
        raise _unclear(
            where,
            f"the optimizer counts {len(numbers)} parameters, and the model has {len(parameters)}",
        )
    found: list[tuple[int, ...]] = []
    _assign([tuple(group) for group in groups], shapes, parameters, (), found)
    if not found:
        raise _unclear(where, "no order of the model's parameters fits the shapes of the states")
    if len(found) > 1:
        raise _unclear(where, "several orders of the model's parameters fit the shapes")
    return dict(zip(found[0], (name for name, _ in parameters), strict=True))


def _assign(
    groups: list[tuple[int, ...]],
    shapes: Mapping[int, Shape],
    parameters: Sequence[tuple[str, Shape]],
    done: tuple[int, ...],
    found: list[tuple[int, ...]],
) -> None:
    """Give the parameters to the groups one after the other; at most two ways are looked for.

    A state of how far each group has come is visited once: from there the rest is the same.
    """
    start = tuple(0 for _ in groups)
    # ways[position]: from each state the numbers that may come next, filled from the end.
    layers: list[dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]] = []
    states = {start}
    for _, shape in parameters:
        layer: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
        after: set[tuple[int, ...]] = set()
        for state in states:
            steps = []
            for at, taken in enumerate(state):
                if taken < len(groups[at]):
                    number = groups[at][taken]
                    if shapes.get(number, shape) == shape:
                        new = (*state[:at], taken + 1, *state[at + 1 :])
                        steps.append((number, new))
                        after.add(new)
            layer[state] = steps
        layers.append(layer)
        states = after
    alive = set(states)
    for layer in reversed(layers):
        for state, steps in layer.items():
            layer[state] = [step for step in steps if step[1] in alive]
        alive = {state for state, steps in layer.items() if steps}
    todo = [(start, done)] if start in alive or not parameters else []
    while todo and len(found) < 2:
        state, chosen = todo.pop()
        if len(chosen) == len(parameters):
            found.append(chosen)
            continue
        for number, new in layers[len(chosen)][state]:
            todo.append((new, (*chosen, number)))


def _unclear(where: str, why: str) -> ReshardError:
    return source_error(
        "ambiguous-optimizer-ids",
        f"the optimizer states in {where} cannot be given names",
        notes=[why, "`Optimizer.state_dict()` counts parameters and does not name them"],
        helps=[
            "load it where it was trained, and save it with "
            "`torch.distributed.checkpoint.state_dict.get_state_dict`"
        ],
    )
