"""Param groups of a run whose pipeline stages have different ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.formats.deepspeed.folder import Rank
from reshard.formats.deepspeed.grid import Grid
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.optimizer_file import Shard
from reshard.formats.deepspeed.states_zero0 import PlainOptimizer
from reshard.storage.kept import fingerprint


def number_groups(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], grid: Grid
) -> dict[int, tuple[int, ...]]:
    """By pipeline stage, which of the run's groups each of its groups is.

    Every stage has an optimizer of its own, which has no group without parameters.  Groups of two
    stages are one if their settings are equal, the first with the first, the second with the
    second, and so on; the groups of each stage keep their order.
    """
    stages = {stage: _settings(shards, plain, stage * grid.tp) for stage in range(grid.pp)}
    counts = {stage: len(own) for stage, own in stages.items()}
    if len({repr(own) for own in stages.values()}) == 1:
        return {stage: tuple(range(count)) for stage, count in counts.items()}
    merged: list[object] = []
    for own in stages.values():
        merged = _merge(merged, own)
    return {stage: _places(own, merged) for stage, own in stages.items()}


def group_nodes(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], mp_rank: int
) -> list[Node] | None:
    """Param groups of one mp rank's optimizer; None where it does not tell them."""
    shard = shards.get((0, mp_rank))
    if shard is not None:
        return shard.param_groups
    optimizer = plain.get((0, mp_rank))
    return [] if optimizer is None else list(optimizer.inner.at("param_groups").items())


def _settings(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], mp_rank: int
) -> list[object]:
    """By group, what is equal for groups with equal settings."""
    shard = shards.get((0, mp_rank))
    nodes = group_nodes(shards, plain, mp_rank)
    if nodes is None or (shard is not None and shard.stage == 3):  # there, groups are sub-groups
        return list(range(len(shard.groups) if shard is not None else 0))
    return [
        [(key, fingerprint(node.value)) for key, node in group.entries() if key != "params"]
        for group in nodes
    ]


def _merge(merged: Sequence[object], own: Sequence[object]) -> list[object]:
    """The groups of several stages and of one more, each in its order."""
    out = list(merged)
    position = 0
    for group in own:
        if group in out[position:]:
            position = out.index(group, position) + 1
        else:
            out.insert(position, group)
            position += 1
    return out


def _places(own: Sequence[object], merged: Sequence[object]) -> tuple[int, ...]:
    out: list[int] = []
    for group in own:
        out.append(merged.index(group, out[-1] + 1 if out else 0))
    return tuple(out)
