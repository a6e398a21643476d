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
from collections.abc import Callable, Collection, Mapping, Sequence

from reshard.errors import ReshardError, source_error

Shape = tuple[int, ...]
_MEAN, _VARIANCE = "running_mean", "running_var"
_DIGITS = re.compile(r"[0-9]+")
_SHOWN = 4

MAX_STATES = 20_000
"""Positions that are followed at once before the search is given up."""

SORTED = "the file of the weights sorts their names, so the model's order is not known"
GIVEN = "nothing in the file says in which order the optimizer was given its parameters"


def names_of_numbers(
    groups: Sequence[Sequence[int]],
    shapes: Mapping[int, Shape],
    parameters: Sequence[tuple[str, Shape]],
    where: str,
    *,
    is_ordered: bool = True,
    why_unordered: str = SORTED,
) -> dict[int, str]:
    """The name of every number.

    Args:  groups: the numbers of each param group.  shapes: of the states that are shaped like
           their parameter, by number.  parameters: of the model, in its order.
           is_ordered: whether the optimizer has that order; a file that sorts its names tells none.
           why_unordered: why it is not known, for people.
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
        return _by_shapes(numbers, shapes, parameters, where, why_unordered)
    by_name = dict(parameters)
    spare = len(by_name) - len(numbers)

    def step(group: int, position: int, name: str) -> int | None:
        shape = by_name[name]
        return position + 1 if shapes.get(groups[group][position], shape) == shape else None

    try:
        places = assign([len(group) for group in groups], list(by_name), step, spare=spare)
    except NoOneWayError as error:
        if error.candidates:
            (group, position), names = next(iter(error.candidates.items()))
            which = f"number {groups[group][position]} may be {either(names)}"
            raise _unclear(where, error.why, which) from None
        shapes_of_model = {*by_name.values(), ()}
        others = (number for number in numbers if shapes.get(number, ()) not in shapes_of_model)
        number = next(others, None)
        if number is None:
            raise _unclear(where, error.why) from None
        raise _no_such_shape(where, number, shapes[number]) from None
    return {groups[group][position]: name for name, (group, position) in places.items()}


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
    why: str,
) -> dict[int, str]:
    """Names where every shape is that of one parameter alone.

    One number without a shape has the one parameter that is left.
    """
    counts = Counter(shape for _, shape in parameters)
    by_shape = {shape: name for name, shape in parameters if counts[shape] == 1}
    out: dict[int, str] = {}
    shapeless = [number for number in numbers if number not in shapes]
    for number in numbers:
        shape = shapes.get(number)
        if shape is None and len(shapeless) == 1 and len(numbers) == len(parameters):
            continue
        if shape not in by_shape:
            if shape is not None and shape not in counts:
                raise _no_such_shape(where, number, shape)
            candidates = [name for name, other in parameters if shape in (None, other)]
            size = "no shape" if shape is None else f"shape {list(shape)}"
            which = f"number {number} has {size}: it may be {either(candidates)}"
            raise _unclear(where, why, which)
        out[number] = by_shape[shape]
    if len(set(out.values())) != len(out):
        raise _unclear(where, "two numbers have the shape of one parameter")
    if len(out) < len(numbers):
        out[shapeless[0]] = next(name for name, _ in parameters if name not in out.values())
    return out


def _no_such_shape(where: str, number: int, shape: Shape) -> ReshardError:
    why = (
        f"number {number} has a state of shape {list(shape)}, and no parameter "
        "has that shape; names are given by shapes, and factored states have others"
    )
    return _unclear(where, why, helps=NAMES_ONLY)


Step = Callable[[int, int, str], int | None]
"""(group, position, name) -> the next position if the name can stand there, else None."""
At = tuple[int, ...]
"""By group, how far it has come."""
_Layer = Mapping[At, Sequence[tuple[At, int | None]]]
"""How a name leads to positions: from which, and standing in which group; None if in none."""


class NoOneWayError(Exception):
    """Names have several places, or none.

    Args:  why: for people.
           candidates: by group and position, the names that can stand there, where there are
           several.
    """

    def __init__(
        self, why: str, candidates: Mapping[tuple[int, int], Sequence[str]] | None = None
    ) -> None:
        super().__init__(why)
        self.why = why
        self.candidates = candidates or {}


def assign(
    goal: Sequence[int], names: Sequence[str], step: Step, *, spare: int | None
) -> dict[str, tuple[int, int]]:
    """The group and the position of every name, in the order of the names within each group.

    A state of how far each group has come is visited once: from there the rest is the same.

    Args:  goal: by group, the position behind its last parameter.  names: in the module's order.
           spare: how many of them have no position, where a name takes one position; None for any.
    Raises: NoOneWayError.
    """
    end = tuple(goal)
    ways: dict[At, int] = {(0,) * len(goal): 1}  # 2 stands for several
    layers: list[_Layer] = []
    for index, name in enumerate(names):
        reached: dict[At, list[tuple[At, int | None]]] = {}
        for at in ways:
            for group, position in enumerate(at):
                after = step(group, position, name) if position < end[group] else None
                if after is not None and after <= end[group]:
                    to = (*at[:group], after, *at[group + 1 :])
                    reached.setdefault(to, []).append((at, group))
            if spare is None or index - sum(at) < spare:
                reached.setdefault(at, []).append((at, None))
        if len(reached) > MAX_STATES:
            raise NoOneWayError("too many parameters of one shape are in several groups")
        ways = {
            at: min(2, sum(ways[before] for before, _ in steps)) for at, steps in reached.items()
        }
        layers.append(reached)
    count = ways.get(end, 0)
    if count != 1:
        what = "several orders of the weights fit" if count else "no order of the weights fits"
        candidates = _candidates(names, layers, end) if count else {}
        raise NoOneWayError(f"{what} the shapes of the states", candidates)
    out: dict[str, tuple[int, int]] = {}
    at = end
    for name, layer in zip(reversed(names), reversed(layers), strict=True):
        at, standing = layer[at][0]
        if standing is not None:
            out[name] = (standing, at[standing])
    return dict(reversed(out.items()))


def _candidates(
    names: Sequence[str], layers: Sequence[_Layer], end: At
) -> dict[tuple[int, int], list[str]]:
    """Which names can stand at each place, where there are several."""
    by_place: dict[tuple[int, int], dict[str, None]] = {}
    goals = {end}
    for name, layer in zip(reversed(names), reversed(layers), strict=True):
        edges = [edge for goal in goals for edge in layer.get(goal, ())]
        for before, group in edges:
            if group is not None:
                by_place.setdefault((group, before[group]), {})[name] = None
        goals = {before for before, _ in edges}
    return {place: [*reversed(own)] for place, own in sorted(by_place.items()) if len(own) > 1}


def either(names: Sequence[str]) -> str:
    """``a`, `b`, or `c``, for messages."""
    quoted = [f"`{name}`" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        quoted.append(f"one of {len(names) - _SHOWN} more")
    return f"{', '.join(quoted[:-1])}, or {quoted[-1]}" if len(quoted) > 2 else " or ".join(quoted)


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
