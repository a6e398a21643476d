"""Which parameters each of several chained optimizers has.

Source: megatron/core/optimizer/__init__.py `get_megatron_optimizer` (core 0.6 to 0.16): one for the
dense parameters, one for experts over several ranks; with overlapping gathers of parameters, one
more for the first model chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.modules import is_expert
from reshard.formats.megatron.optimizer_ids import (
    GroupMembers,
    Parameter,
    assign_groups,
    check_shape,
)
from reshard.storage.torch_file import TensorRef


@dataclass(frozen=True, slots=True)
class Part:
    """One optimizer as it is stored.

    Args:  groups: its param groups.  states: by number.  masters: by group, None without any.
    """

    groups: tuple[Mapping[str, object], ...]
    states: Mapping[object, Mapping[object, object]]
    masters: tuple[tuple[object, ...], ...] | None


def share_parameters(
    parts: Sequence[Part], parameters: Sequence[Parameter], file: str
) -> list[tuple[GroupMembers, ...]]:
    """The groups of every optimizer with their parameters.

    Raises: ReshardError[ambiguous-optimizer-ids] when the parameters can be shared in no way, or in
            several.
    """
    fitting: list[list[tuple[GroupMembers, ...]]] = []
    first: ReshardError | None = None
    for shares in _ways(len(parts), parameters):
        try:
            fitting.append(
                [_assigned(part, mine, file) for part, mine in zip(parts, shares, strict=True)]
            )
        except ReshardError as error:
            first = first or error
    if len(fitting) == 1:
        return fitting[0]
    if first is not None and not fitting:
        raise first
    raise source_error(
        "ambiguous-optimizer-ids",
        f"{file} has {len(parts)} optimizers, and which parameters each has is not known",
        notes=[
            f"{len(fitting)} ways of sharing {len(parameters)} parameters fit",
            "optimizers count their parameters and do not name them",
        ],
        helps=["leave the optimizer out with `--states weights`"],
    )


def _ways(count: int, parameters: Sequence[Parameter]) -> Iterator[tuple[Sequence[Parameter], ...]]:
    """Ways in which Megatron shares parameters; none twice."""
    dense = [p for p in parameters if not is_expert(p.name)]
    experts = [p for p in parameters if is_expert(p.name)]
    head, rest = [p for p in dense if p.chunk == 0], [p for p in dense if p.chunk > 0]
    if count == 1:
        yield (parameters,)
    elif count == 2 and experts:
        yield dense, experts
    elif count == 2 and head and rest:
        yield head, rest
    elif count == 3 and head and rest and experts:
        yield head, rest, experts


def _assigned(part: Part, mine: Sequence[Parameter], file: str) -> tuple[GroupMembers, ...]:
    assigned = assign_groups(part.groups, mine, file)
    for group in assigned:
        for number, parameter in zip(group.ids, group.members, strict=bool(group.ids)):
            for name, value in part.states.get(number, {}).items():
                if isinstance(value, TensorRef):
                    check_shape(parameter, value.shape, str(name), number, file)
    return assigned
