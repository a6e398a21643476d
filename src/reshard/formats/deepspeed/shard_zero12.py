"""Optimizer files of ZeRO stages 1 and 2, and of BF16_Optimizer.

Source: DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py and runtime/bf16_optimizer.py `state_dict`.
"""

from __future__ import annotations

from reshard.errors import source_error
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.scalar import scalar_of
from reshard.formats.deepspeed.shard import GroupShard, Shard
from reshard.storage.inert import Record


def read_zero12(root: Node, optimizer: Node, stage: int) -> Shard:
    """One rank's partition of every param group.

    Args:  optimizer: `optimizer_state_dict`.  stage: 1 or 2.
    Raises: ReshardError[missing-key | unexpected-content | partition-mismatch].
    """
    masters = list(optimizer.at("single_partition_of_fp32_groups").items())
    paddings = _numbers(optimizer, "group_paddings", len(masters))
    counts = _numbers(optimizer, "partition_count", len(masters))
    gaps = optimizer.get("param_alignment_paddings")
    slices = optimizer.get("param_slice_mappings")
    # BF16_Optimizer, which states no stage, keeps the padding behind its master weights.
    stripped = optimizer.get("zero_stage") is not None
    groups = []
    for index, master in enumerate(masters):
        ref = master.tensor()
        padding = 0 if paddings is None else paddings[index]
        partition_numel = ref.numel + (padding if stripped else 0)
        groups.append(
            GroupShard(
                root.file,
                ref,
                dict(_states(optimizer, index)),
                padding,
                partition_numel,
                None if counts is None else counts[index],
                None if gaps is None else tuple(n.integer() for n in gaps.item(index).items()),
                None if slices is None else _slices(slices.item(index)),
            )
        )
    return Shard(root, optimizer, stage, tuple(groups))


def _numbers(optimizer: Node, key: str, length: int) -> tuple[int, ...] | None:
    node = optimizer.get(key)
    if node is None:
        return None
    if isinstance(node.value, int):
        return (node.integer(),) * length
    found = tuple(item.integer() for item in node.items())
    if len(found) != length:
        raise source_error(
            "partition-mismatch",
            f"`{key}` of {node.file} has {len(found)} numbers for {length} param groups",
        )
    return found


def _states(optimizer: Node, index: int) -> list[tuple[str, Node]]:
    """The optimizer's states of one group, and its step where the group itself has that."""
    base = optimizer.at("base_optimizer_state")
    if isinstance(base.value, list):  # elastic: one entry per group, without hyper-parameters
        entries = list(base.item(index).entries())
        step = optimizer.get("base_optimizer_state_step")
    else:
        group = base.at("param_groups").item(index)
        params = list(group.at("params").items())
        key = params[0].integer() if params else index
        state = base.at("state").get(key)
        entries = [] if state is None else list(state.entries())
        step = group.get("step")
    known = {name for name, _ in entries}
    if step is not None and "step" not in known and scalar_of(step.value, step.file) is not None:
        entries.append(("step", step))
    return entries


def _slices(node: Node) -> dict[str, tuple[int, int]]:
    out = {}
    for name, item in node.entries():
        if isinstance(item.value, Record):
            fields = Node(item.value.attributes, item.file, item.path)
            out[name] = (fields.at("start").integer(), fields.at("numel").integer())
    return out
