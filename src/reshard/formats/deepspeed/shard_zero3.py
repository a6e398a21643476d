"""Optimizer files of ZeRO stage 3.

Source: DeepSpeed 0.19.8, runtime/zero/stage3.py `state_dict`.
"""

from __future__ import annotations

from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.scalar import scalar_of
from reshard.formats.deepspeed.shard import GroupShard, Shard


def read_zero3(root: Node, optimizer: Node) -> Shard:
    """One rank's partition of every sub-group.

    Args:  optimizer: `optimizer_state_dict`.
    Raises: ReshardError[missing-key | unexpected-content].
    """
    count = optimizer.get("partition_count")
    base = optimizer.at("optimizer_state_dict")
    described = optimizer.get("ds_zero_partition_groups")
    partitions = (
        {}
        if described is None
        else {item.at("sub_group").integer(): item for item in described.items()}
    )
    steps = _group_steps(base)
    groups = []
    for index, master in enumerate(optimizer.at("fp32_flat_groups").items()):
        ref = master.tensor()
        state = base.at("state").get(index)
        entries = [] if state is None else list(state.entries())
        if index in steps and not any(name == "step" for name, _ in entries):
            entries.append(("step", steps[index]))
        own = partitions.get(index)
        groups.append(
            GroupShard(
                root.file,
                ref,
                dict(entries),
                0,
                ref.numel,
                _count(own, count),
                ranks=None
                if own is None
                else tuple(item.integer() for item in own.at("partition_ranks").items()),
            )
        )
    return Shard(root, optimizer, 3, tuple(groups))


def _count(own: Node | None, count: Node | None) -> int | None:
    if own is not None:
        return own.at("partition_count").integer()
    return None if count is None else count.integer()


def _group_steps(base: Node) -> dict[int, Node]:
    """By sub-group, the step of its param group where the group has that."""
    out: dict[int, Node] = {}
    groups = base.get("param_groups")
    for group in [] if groups is None else groups.items():
        step = group.get("step")
        if step is None or scalar_of(step.value, step.file) is None:
            continue
        out.update({item.integer(): step for item in group.at("params").items()})
    return out
