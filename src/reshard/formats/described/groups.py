"""Parameter groups and schedulers, where every pipeline stage has those of its own parameters.

Source: nanotron/helpers.py `init_optimizer_and_grad_accumulator` (2411b02): since it has learning
rates by name, each parameter has a group of its own, and a stage has the groups of its parameters.
Earlier releases have the same few groups on every stage. The scheduler (torch's `LambdaLR`) has
lists with an entry for each group of its stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reshard.formats.described.faults import bad_fact
from reshard.formats.described.walk import Leaf
from reshard.plan.agreement import agreed
from reshard.storage.kept import encode

STAGE = "pp"
"""The mesh axis of the stages."""
OF_STAGES = ("param_groups", "lr_scheduler")
"""Facts of which each stage may have its own."""

ONE_EACH, SHARED = "one each", "shared"
"""How a checkpoint groups parameters: what `groups` of the kept facts says."""


@dataclass(slots=True)
class StageGroup:
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


def stage_of(leaf: Leaf) -> int:
    """The stage that a file is of; 0 where it is of no one stage."""
    return int(leaf.bindings.get(STAGE, 0))


def settings_of(leaf: Leaf) -> list[dict[str, object]]:
    """The hyper-parameters of the groups that a file lists.

    Raises: ReshardError[bad-fact].
    """
    groups = leaf.value
    if not isinstance(groups, (list, tuple)) or not all(isinstance(x, dict) for x in groups):
        raise bad_fact(leaf, "parameter groups are a list of dicts")
    return [
        {str(k): encode(v) for k, v in group.items() if k not in ("params", "param_names")}
        for group in groups
    ]


def stage_groups(
    leaves: Sequence[Leaf], members: Mapping[str, Sequence[Sequence[str]]]
) -> dict[int, list[StageGroup]]:
    """The groups of every stage, whose ranks have the same settings and parameters of their own.

    Args:  members: by file, the names of each group's parameters.
    Raises: ReshardError[bad-fact | mixed-runs].
    """
    stages: dict[int, list[StageGroup]] = {}
    firsts: dict[int, tuple[str, list[dict[str, object]]]] = {}
    for leaf in leaves:
        stage, settings = stage_of(leaf), settings_of(leaf)
        first = firsts.setdefault(stage, (leaf.file.path, settings))
        agreed([first, (leaf.file.path, settings)], "param groups of a stage")
        known = stages.setdefault(stage, [StageGroup(item) for item in settings])
        for group, names in zip(known, members.get(leaf.file.path, ()), strict=False):
            group.members += [name for name in names if name not in group.members]
    return stages


def merge(
    stages: Mapping[int, Sequence[StageGroup]], schedulers: Mapping[int, Mapping[str, object]]
) -> Merged:
    """The groups of all stages: those of the same settings are one.

    Groups that several parameters share stay apart within a stage, even where they say the same.

    Raises: ReshardError[mixed-runs], where the stages' schedulers are of different steps.
    """
    every = [group for groups in stages.values() for group in groups]
    is_each = len(every) > 1 and all(len(group.members) <= 1 for group in every)
    merged: dict[tuple[str, int], tuple[StageGroup, dict[str, object]]] = {}
    for stage, groups in stages.items():
        seen: dict[str, int] = {}
        listed = _by_group(schedulers.get(stage, {}), len(groups))
        for index, group in enumerate(groups):
            entries = {name: of[index] for name, of in listed.items()}
            key = repr((sorted(group.settings.items()), sorted(entries.items())))
            number = 0 if is_each else seen.get(key, 0)
            seen[key] = number + 1
            known, _ = merged.setdefault((key, number), (StageGroup(group.settings), entries))
            known.members += [name for name in group.members if name not in known.members]
    found = tuple({**group.settings, "params": group.members} for group, _ in merged.values())
    kind = ONE_EACH if is_each else SHARED
    if not schedulers:
        return Merged(found, None, kind)
    rest = []
    for stage, value in schedulers.items():
        of_groups = _by_group(value, len(stages.get(stage, ())))
        rest.append((f"stage {stage}", {k: v for k, v in value.items() if k not in of_groups}))
    whole = agreed(rest, "learning rate schedulers")
    assert isinstance(whole, dict)
    names = dict.fromkeys(name for _, entries in merged.values() for name in entries)
    lists = {name: [entries.get(name) for _, entries in merged.values()] for name in names}
    return Merged(found, {**whole, **lists}, kind)


def scheduler_of(
    scheduler: Mapping[str, object], count: int, chosen: Sequence[int]
) -> dict[str, object]:
    """The scheduler of a stage.

    Args:  scheduler: of the whole run, of `count` groups.  chosen: the groups of the stage.
    """
    listed = _by_group(scheduler, count)
    return {**scheduler, **{name: [of[index] for index in chosen] for name, of in listed.items()}}


def _by_group(scheduler: Mapping[str, object], count: int) -> dict[str, list[object]]:
    """What a scheduler says of each of its groups."""
    return {k: v for k, v in scheduler.items() if isinstance(v, list) and len(v) == count}
