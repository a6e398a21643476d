"""Whose state is it: names for the numbers, or the places in a buffer, that states have.

torch numbers parameters group by group, in the order in which they were given; that order is taken
to follow the module's.  Names are accepted only where one assignment alone is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reshard.errors import ReshardError, source_error

_SHOWN = 4

MAX_STATES = 20_000
"""Positions that are followed at once before the search is given up."""

Step = Callable[[int, int, str], int | None]
"""(group, position, name) -> the next position if the name can stand there, else None."""


def assign(
    goal: Sequence[int], names: Sequence[str], step: Step, file: str, *, may_skip: bool
) -> dict[str, tuple[int, int]]:
    """The group and the position of every name.

    Args:  goal: by group, the position behind its last parameter.
           names: in the module's order.  may_skip: whether some may have no position.
    Raises: ReshardError[ambiguous-optimizer-ids].
    """
    end = tuple(goal)
    layers: list[dict[tuple[int, ...], int]] = [{(0,) * len(goal): 1}]  # 2 stands for several ways
    for name in names:
        reached: dict[tuple[int, ...], int] = {}
        for at, ways in layers[-1].items():
            for group, position in enumerate(at):
                after = step(group, position, name) if position < end[group] else None
                if after is not None and after <= end[group]:
                    key = (*at[:group], after, *at[group + 1 :])
                    reached[key] = min(2, reached.get(key, 0) + ways)
            if may_skip:
                reached[at] = min(2, reached.get(at, 0) + ways)
        if len(reached) > MAX_STATES:
            raise ambiguous_ids(file, "too many parameters of one shape are in several groups")
        layers.append(reached)
    ways = layers[-1].get(end, 0)
    if ways == 0:
        raise ambiguous_ids(file, "no order of the weights fits the shapes of the states")
    if ways > 1:
        raise ambiguous_ids(
            file,
            "several orders of the weights fit the shapes of the states",
            _candidates(names, step, layers, end, may_skip),
        )
    return _walk(names, step, layers, end)


def _candidates(
    names: Sequence[str],
    step: Step,
    layers: Sequence[dict[tuple[int, ...], int]],
    end: tuple[int, ...],
    may_skip: bool,
) -> list[str]:
    """Which names each state can have, for people; of the first few that can have several."""
    found: dict[tuple[int, int], list[str]] = {}
    goals = {end}
    for count in range(len(names), 0, -1):
        name = names[count - 1]
        before: set[tuple[int, ...]] = set()
        for at in layers[count - 1]:
            if may_skip and at in goals:
                before.add(at)
            for group, position in enumerate(at):
                after = step(group, position, name) if position < end[group] else None
                if after is not None and (*at[:group], after, *at[group + 1 :]) in goals:
                    before.add(at)
                    own = found.setdefault((group, position), [])
                    if name not in own:
                        own.insert(0, name)
        goals = before
    several = [(place, own) for place, own in sorted(found.items()) if len(own) > 1]
    out = [
        f"state {position} of group {group} is of {_either(own)}"
        for (group, position), own in several[:_SHOWN]
    ]
    if len(several) > _SHOWN:
        out.append(f"and {len(several) - _SHOWN} more states have several names that fit")
    return out


def _either(names: Sequence[str]) -> str:
    listed = [f"`{name}`" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        listed.append(f"{len(names) - _SHOWN} more")
    return f"{', '.join(listed[:-1])}, or {listed[-1]}" if len(listed) > 2 else " or ".join(listed)


def _walk(
    names: Sequence[str],
    step: Step,
    layers: Sequence[dict[tuple[int, ...], int]],
    end: tuple[int, ...],
) -> dict[str, tuple[int, int]]:
    """The one way, followed from its end."""
    out: dict[str, tuple[int, int]] = {}
    goal = end
    for count in range(len(names), 0, -1):
        name = names[count - 1]
        group, at = _before(layers[count - 1], goal, step, name)
        if group is not None:
            out[name] = (group, at[group])
        goal = at
    return dict(reversed(out.items()))


def _before(
    layer: dict[tuple[int, ...], int], goal: tuple[int, ...], step: Step, name: str
) -> tuple[int | None, tuple[int, ...]]:
    """From which positions a name led to these, and the group that it stood in."""
    for at in layer:
        moved = [group for group, position in enumerate(at) if position != goal[group]]
        if not moved:
            return None, at
        if len(moved) == 1 and step(moved[0], at[moved[0]], name) == goal[moved[0]]:
            return moved[0], at
    raise AssertionError("the search has no way back")


def ambiguous_ids(file: str, why: str, notes: Sequence[str] = ()) -> ReshardError:
    """The error for states that cannot be given names.

    Args:  notes: what is known of them all the same.
    """
    return source_error(
        "ambiguous-optimizer-ids",
        f"the optimizer states in {file} cannot be given names",
        notes=[
            why,
            *notes,
            "without ZeRO, DeepSpeed saves states by number and does not say whose they are",
        ],
        helps=[
            "convert the weights alone with `--states weights`",
            "load it with DeepSpeed, train one step with ZeRO stage 1, whose files have names, and "
            "save again",
        ],
    )
