"""What one rank's optimizer file holds, in one form for every ZeRO stage.

Source: DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py, runtime/bf16_optimizer.py, and
runtime/zero/stage3.py `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.node import Node, Scalar, partition_mismatch, scalar_of
from reshard.run.states import MASTER, STEP
from reshard.storage.torch_file import TensorRef

MASTERS = "single_partition_of_fp32_groups"
MASTERS_ZERO3 = "fp32_flat_groups"
BASE = "base_optimizer_state"
BASE_ZERO3 = "optimizer_state_dict"


@dataclass(frozen=True, slots=True)
class GroupShard:
    """One rank's partition of one flat group (a param group, or a sub-group at stage 3).

    Args:  master: the master weights; with the padding at their end, or without.
           entries: what the optimizer keeps of the group, by state.
           count: ranks that the group is partitioned over, None if the file does not tell.
           padding: elements at the end of the buffer that belong to no parameter, as the rank says.
           is_stripped: whether the master weights are without them.
           gaps: elements between the parameters, one number for each, behind it.
           slices: name -> (start in the partition, elements), as the writer saw it; wrong for
                   round-robin gradients.
           ranks: global ranks that share the group, None if the file does not tell.
    """

    file: str
    master: TensorRef
    entries: Mapping[str, Node]
    count: int | None
    padding: int = 0
    is_stripped: bool = False
    gaps: tuple[int, ...] | None = None
    slices: Mapping[str, tuple[int, int]] | None = None
    ranks: tuple[int, ...] | None = None

    @property
    def partition_numel(self) -> int:
        """Elements of the partition, padding included, as the rank says."""
        return self.master.numel + (self.padding if self.is_stripped else 0)

    def fits(self, numel: int) -> bool:
        """Whether the partition is one of so many elements.

        Before 0.19 the last rank alone states the padding of all ranks, which can be more than its
        partition; it stores what `master[: numel - padding]` leaves of it.
        """
        if self.partition_numel == numel:
            return True
        rest = len(range(numel)[: numel - self.padding])
        return self.padding > numel and self.master.numel == rest


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's optimizer file.

    Args:  root: the whole tree.  optimizer: the optimizer's own state_dict within it.
           stage: ZeRO stage.  groups: by position.
    """

    root: Node
    optimizer: Node
    stage: int
    groups: tuple[GroupShard, ...]

    @property
    def file(self) -> str:
        """Its name."""
        return self.root.file

    @property
    def param_groups(self) -> list[Node] | None:
        """The groups with their hyper-parameters; None for an elastic checkpoint, without these."""
        base = base_of(self.optimizer)
        return None if base is None else list(base.at("param_groups").items())


def base_of(optimizer: Node) -> Node | None:
    """The state dict of torch's optimizer within that of DeepSpeed's; None where it is a list."""
    base = optimizer.get(BASE) or optimizer.get(BASE_ZERO3)
    return base if base is not None and base.is_dict else None


def read_shard(root: Node) -> Shard:
    """One rank's optimizer file.

    Raises: ReshardError[unknown-zero-stage | missing-key | unexpected-content].
    """
    optimizer = root.at("optimizer_state_dict")
    stated = optimizer.get("zero_stage")
    unstated = 3 if optimizer.has(MASTERS_ZERO3) else 1  # BF16_Optimizer does not say
    stage = unstated if stated is None else stated.integer()
    for masters, stages, read in ((MASTERS_ZERO3, {3}, _zero3), (MASTERS, {1, 2}, _zero12)):
        if stage in stages and optimizer.has(masters):
            nodes = list(enumerate(optimizer.at(masters).items()))
            return Shard(root, optimizer, stage, tuple(read(optimizer, nodes)))
    keys = ", ".join(f"`{key}`" for key in list(optimizer.mapping())[:12])
    raise source_error(
        "unknown-zero-stage",
        f"{root.file} holds optimizer states of ZeRO stage {stage} in an unknown form",
        notes=[
            f"its `optimizer_state_dict` has {keys}",
            f"stages 1 and 2 have `{MASTERS}`, stage 3 `{MASTERS_ZERO3}`",
        ],
        helps=["load the checkpoint with its DeepSpeed and save it with a version from 0.4 on"],
    )


def _zero12(optimizer: Node, masters: Sequence[tuple[int, Node]]) -> list[GroupShard]:
    """One rank's partition of every param group."""
    paddings = _numbers(optimizer, "group_paddings", len(masters))
    counts = _numbers(optimizer, "partition_count", len(masters))
    gaps = optimizer.get("param_alignment_paddings")
    slices = optimizer.get("param_slice_mappings")
    return [
        GroupShard(
            optimizer.file,
            master.tensor(),
            _zero12_states(optimizer, index),
            counts[index] if counts else None,
            paddings[index] if paddings else 0,
            # BF16_Optimizer, which states no stage, keeps the padding behind its master weights.
            optimizer.get("zero_stage") is not None,
            None if gaps is None else gaps.item(index).integers(),
            None if slices is None else _slices(slices.item(index)),
        )
        for index, master in masters
    ]


def _numbers(optimizer: Node, key: str, length: int) -> tuple[int, ...]:
    node = optimizer.get(key)
    if node is None or isinstance(node.value, int):
        return () if node is None else (node.integer(),) * length
    numbers = node.integers()
    if len(numbers) != length:
        raise partition_mismatch(
            f"`{key}` of {node.file} has {len(numbers)} numbers for {length} param groups"
        )
    return numbers


def _zero12_states(optimizer: Node, index: int) -> dict[str, Node]:
    """The optimizer's states of one group, and its step where the group itself has that."""
    base = optimizer.at(BASE)
    if not base.is_dict:  # elastic: one entry per group, without hyper-parameters
        return _with_step(base.item(index), optimizer.get("base_optimizer_state_step"))
    group = base.at("param_groups").item(index)
    params = group.at("params").integers()
    return _with_step(base.at("state").get(params[0] if params else index), group.get(STEP))


def _with_step(state: Node | None, step: Node | None) -> dict[str, Node]:
    entries = {} if state is None else dict(state.entries())
    if step is not None and scalar_of(step) is not None:
        entries.setdefault(STEP, step)
    return entries


def _slices(node: Node) -> dict[str, tuple[int, int]]:
    fields = {name: item.fields() for name, item in node.entries()}
    return {
        name: (item.at("start").integer(), item.at("numel").integer())
        for name, item in fields.items()
        if item.is_dict
    }


def _zero3(optimizer: Node, masters: Sequence[tuple[int, Node]]) -> list[GroupShard]:
    """One rank's partition of every sub-group."""
    count, base = optimizer.get("partition_count"), optimizer.at(BASE_ZERO3)
    described, groups = optimizer.get("ds_zero_partition_groups"), base.get("param_groups")
    partitions = {
        item.at("sub_group").integer(): item
        for item in ([] if described is None else described.items())
    }
    steps = {
        number: step
        for group in ([] if groups is None else groups.items())
        if (step := group.get(STEP)) is not None
        for number in group.at("params").integers()
    }
    out = []
    for index, master in masters:
        partition = partitions.get(index)
        counted = count if partition is None else partition.at("partition_count")
        out.append(
            GroupShard(
                optimizer.file,
                master.tensor(),
                _with_step(base.at("state").get(index), steps.get(index)),
                None if counted is None else counted.integer(),
                ranks=None if partition is None else partition.at("partition_ranks").integers(),
            )
        )
    return out


# States.


@dataclass(slots=True)
class SortedStates:
    """The states of one flat group by how ranks hold them; each value is by partition.

    Args:  elements: one number for each element of the partition.
           wholes: one for each element of every parameter of which the partition has some.
           numbers: one number, the same on all ranks.
           kept: everything else.
    """

    elements: dict[str, list[TensorRef]] = field(default_factory=dict)
    wholes: dict[str, list[TensorRef | None]] = field(default_factory=dict)
    numbers: dict[str, Scalar] = field(default_factory=dict)
    kept: dict[str, list[Node | None]] = field(default_factory=dict)


Disagree = Callable[[str, str, str, str], ReshardError]
"""The error for what all ranks must say alike: (what, the first rank's, another's, its file)."""


def sort_states(
    shards: Sequence[GroupShard], numel: int, touched: Sequence[int], disagree: Disagree
) -> SortedStates:
    """Sort the states of a group; all ranks must hold a state in the same way.

    Args:  numel: of a partition.  touched: by partition, elements of all parameters in it.
    Raises: ReshardError[ranks-disagree].
    """
    out = SortedStates({MASTER: [shard.master for shard in shards]})
    files = [shard.file for shard in shards]
    for state in dict.fromkeys(state for shard in shards for state in shard.entries):
        nodes = [shard.entries.get(state) for shard in shards]
        if all(node is None or node.is_none for node in nodes):
            continue
        flat = [_flat(node) for node in nodes]
        of_elements = [
            ref is not None and ref.numel in (numel, shard.master.numel)
            for ref, shard in zip(flat, shards, strict=True)
        ]
        if all(of_elements):
            out.elements[state] = [ref for ref in flat if ref is not None]
        elif all((ref.numel if ref else 0) == n for ref, n in zip(flat, touched, strict=True)):
            out.wholes[state] = flat
        elif (number := _number(state, files, nodes, disagree)) is not None:
            out.numbers[state] = number
        else:
            kinds = ["a tensor" if node is not None else "nothing" for node in nodes]
            for kind, file in zip(kinds, files, strict=True):
                if kind != kinds[0] and any(of_elements):
                    raise disagree(f"`{state}`", kinds[0], kind, file)
            out.kept[state] = nodes
    return out


def _flat(node: Node | None) -> TensorRef | None:
    value = None if node is None else node.value
    return value if isinstance(value, TensorRef) and len(value.shape) == 1 else None


def _number(
    state: str, files: Sequence[str], nodes: Sequence[Node | None], disagree: Disagree
) -> Scalar | None:
    """The number that a state is on all ranks; None where it is none, or differs between them."""
    numbers = [scalar_of(node) for node in nodes]
    first = numbers[0]
    for number, file in zip(numbers, files, strict=True):
        same = number and first and (number.dtype, number.data) == (first.dtype, first.data)
        if not same and state == STEP and any(numbers):
            one, other = (f"{item}" if item else "nothing" for item in (first, number))
            raise disagree(f"`{state}`", one, other, file)
        if not same:
            return None
    return first
