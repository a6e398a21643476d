"""Parameter groups and schedulers, which every pipeline stage numbers for its own parameters.

Source: nanotron/helpers.py `init_optimizer_and_grad_accumulator` (2411b02): since it has learning
rates by name, each parameter has a group of its own, and a stage has the groups of its parameters.
Earlier releases have the same few groups on every stage. The scheduler (torch's `LambdaLR`) has
lists with an entry for each group of its stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reshard.plan.agreement import agreed

ONE_EACH, SHARED = "one each", "shared"
"""How a checkpoint groups parameters: what `groups` of the kept facts says."""


@dataclass(slots=True)
class Group:
    """A group of one stage.  Args: settings: JSON.  members: names of its parameters."""

    settings: Mapping[str, object]
    members: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Merged:
    """The groups of a whole run.

    Args:  groups: each with `params`.  scheduler: with an entry for each of them in its lists; None
                   if there is none.  kind: ONE_EACH or SHARED.
    """

    groups: tuple[dict[str, object], ...]
    scheduler: dict[str, object] | None
    kind: str


def merge(
    stages: Mapping[int, Sequence[Group]], schedulers: Mapping[int, Mapping[str, object]]
) -> Merged:
    """The groups of all stages: those of the same settings are one.

    Groups that several parameters share stay apart within a stage, even where they say the same.

    Raises: ReshardError[mixed-runs], where the stages' schedulers are of different steps.
    """
    every = [group for groups in stages.values() for group in groups]
    is_each = len(every) > 1 and all(len(group.members) <= 1 for group in every)
    merged: dict[tuple[str, int], tuple[Group, dict[str, object]]] = {}
    for stage, groups in stages.items():
        seen: dict[str, int] = {}
        for index, group in enumerate(groups):
            entries = _entries(schedulers.get(stage, {}), index, len(groups))
            key = repr((sorted(group.settings.items()), sorted(entries.items())))
            number = 0 if is_each else seen.get(key, 0)
            seen[key] = number + 1
            known, _ = merged.setdefault((key, number), (Group(group.settings), entries))
            known.members += [name for name in group.members if name not in known.members]
    found = tuple({**group.settings, "params": group.members} for group, _ in merged.values())
    kind = ONE_EACH if is_each else SHARED
    if not schedulers:
        return Merged(found, None, kind)
    rest = [
        (f"stage {stage}", _rest(value, len(stages.get(stage, ()))))
        for stage, value in schedulers.items()
    ]
    whole = agreed(rest, "learning rate schedulers")
    assert isinstance(whole, dict)
    lists = dict.fromkeys(name for _, entries in merged.values() for name in entries)
    listed = {name: [entries.get(name) for _, entries in merged.values()] for name in lists}
    return Merged(found, {**whole, **listed}, kind)


def scheduler_of(
    scheduler: Mapping[str, object], count: int, chosen: Sequence[int]
) -> dict[str, object]:
    """The scheduler of a stage.

    Args:  scheduler: of the whole run, of `count` groups.  chosen: the groups of the stage.
    """
    return {
        name: [value[index] for index in chosen]
        if isinstance(value, list) and len(value) == count
        else value
        for name, value in scheduler.items()
    }


def _entries(scheduler: Mapping[str, object], index: int, count: int) -> dict[str, object]:
    """What a stage's scheduler says of one of its groups."""
    return {
        name: value[index]
        for name, value in scheduler.items()
        if isinstance(value, list) and len(value) == count
    }


def _rest(scheduler: Mapping[str, object], count: int) -> dict[str, object]:
    """What it says of no single group."""
    return {
        name: value
        for name, value in scheduler.items()
        if not (isinstance(value, list) and len(value) == count)
    }
