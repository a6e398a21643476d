"""Param groups of a run as its data-parallel ranks share them, flat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod

from reshard.algebra.flat import cut
from reshard.algebra.partition import Partition, partition_buffer, partition_each
from reshard.algebra.piece import Piece
from reshard.dtypes import DType
from reshard.errors import ReshardError, target_error
from reshard.formats.deepspeed.inventory import Inventory
from reshard.formats.deepspeed.native_options import NativeOptions
from reshard.formats.deepspeed.resume import ParamGroup
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec


@dataclass(frozen=True, slots=True)
class FlatGroup:
    """A param group, or at stage 3 a sub-group of one, on the ranks that share it.

    Args:  index: which of the optimizer's param groups.
           tensors: in the order of the buffer.  gaps: elements left free behind each.
           partition: how the ranks share it.  members: data-parallel ranks, by partition.
           states: DeepSpeed's name of each state (`fp32` first) -> the source's.
    """

    index: int
    tensors: tuple[LaidTensor, ...]
    gaps: tuple[int, ...]
    partition: Partition
    members: range
    states: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in the order of the buffer."""
        return {tensor.name: tensor.shape for tensor in self.tensors}

    def length(self, dp_rank: int) -> int:
        """Elements of a rank's flat array."""
        return self.partition.lengths[self.members.index(dp_rank)]

    def padding(self, dp_rank: int) -> int:
        """Elements at its end that belong to no tensor."""
        return self.partition.paddings[self.members.index(dp_rank)]

    def slices(self, dp_rank: int) -> dict[str, tuple[int, int]]:
        """By name of a tensor that a rank has some of: (elements, where they start)."""
        part = self.members.index(dp_rank)
        return {
            self.tensors[share.tensor].name: (share.numel, share.offset)
            for share in self.partition.shares
            if share.rank == part
        }

    def spec(self, dp_rank: int, state: str, dtype: DType, numel: int) -> ArraySpec:
        """A rank's flat array of one state.

        Args:  state: as DeepSpeed names it.  numel: elements that are written of it.
        """
        part = self.members.index(dp_rank)
        segments = tuple(
            (key, held.shift(share.offset - share.start))
            for share in self.partition.shares
            if share.rank == part
            for key, piece in self.tensors[share.tensor].segments
            for held in cut(piece, share.start, share.start + share.numel)
        )
        label = f"{state} of group {self.index} for dp={dp_rank}"
        return ArraySpec(label, self.states[state], dtype, numel, segments)

    def touched(self, dp_rank: int, state: str, dtype: DType) -> ArraySpec:
        """A state of all of every tensor that a rank has some of, one behind the other."""
        part = self.members.index(dp_rank)
        indices = dict.fromkeys(s.tensor for s in self.partition.shares if s.rank == part)
        segments: list[tuple[str, Piece]] = []
        numel = 0
        for index in indices:
            tensor = self.tensors[index]
            segments += [(key, piece.shift(numel)) for key, piece in tensor.segments]
            numel += prod(tensor.shape)
        label = f"{state} of group {self.index} for dp={dp_rank}"
        return ArraySpec(label, self.states[state], dtype, numel, tuple(segments))


def flat_groups(
    groups: Sequence[ParamGroup],
    held: Mapping[str, LaidTensor],
    inventory: Inventory,
    options: NativeOptions,
    ep_rank: int,
) -> tuple[FlatGroup, ...]:
    """The groups of one model-parallel rank, as far as an expert-parallel rank has them.

    Args:  held: the tensors that are there, by the name of the whole one.
    Raises: ReshardError[deepspeed-missing-state | deepspeed-mixed-group].
    """
    out: list[FlatGroup] = []
    for index, group in enumerate(groups):
        tensors = [held[name] for name in group.params if name in held]
        if not tensors:
            continue
        members = _members(index, tensors, options, ep_rank)
        states = _states(index, tensors, inventory)
        if options.zero == 3:
            for part in _sub_groups(tensors, len(members), options.sub_group_size):
                partition = partition_each(_numels(part), len(members))
                gaps = (0,) * len(part)
                out.append(FlatGroup(index, tuple(part), gaps, partition, members, states))
            continue
        count = len(members)
        if options.round_robin:
            tensors = [tensor for first in range(count) for tensor in tensors[first::count]]
        numels = _numels(tensors)
        width = inventory.weights(tensors[0].whole, options.stored, options.dtype)[1].itemsize
        gaps = _gaps(numels, 16 // gcd(16, width) if options.param_alignment else 1)
        partition = partition_buffer(numels, count, 2 * count, gaps)
        out.append(FlatGroup(index, tuple(tensors), gaps, partition, members, states))
    return tuple(out)


def _numels(tensors: Sequence[LaidTensor]) -> tuple[int, ...]:
    return tuple(prod(tensor.shape) for tensor in tensors)


def _gaps(numels: Sequence[int], multiple: int) -> tuple[int, ...]:
    """What is left free behind each tensor so that the next one is aligned; none behind the last.

    Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py, `parameter_alignment`.
    """
    out, end = [], 0
    for position, numel in enumerate(numels):
        end += numel
        out.append(0 if position == len(numels) - 1 else -end % multiple)
        end += out[-1]
    return tuple(out)


def _sub_groups(
    tensors: Sequence[LaidTensor], count: int, size: int
) -> Iterator[Sequence[LaidTensor]]:
    """Source: DeepSpeed 0.19.8 runtime/zero/stage3.py `_create_fp16_sub_groups`."""
    widths = [-(-numel // count) for numel in _numels(tensors)]
    if size >= sum(widths):
        yield tensors
        return
    first = filled = 0
    for position, width in enumerate(widths):
        filled += width
        if filled >= size or position == len(widths) - 1:
            yield tensors[first : position + 1]
            first, filled = position + 1, 0


def _members(
    index: int, tensors: Sequence[LaidTensor], options: NativeOptions, ep_rank: int
) -> range:
    experts = [tensor for tensor in tensors if "ep" in dict(tensor.coord)]
    if not experts:
        return range(options.dp)
    if len(experts) < len(tensors):
        other = next(tensor for tensor in tensors if "ep" not in dict(tensor.coord))
        raise target_error(
            "deepspeed-mixed-group",
            f"group {index} holds experts and other parameters",
            notes=[
                f"`{experts[0].whole}` is of one expert-parallel rank, `{other.whole}` is of all",
                "DeepSpeed keeps experts in param groups of their own",
            ],
        )
    return options.expert_members(ep_rank)


def _states(index: int, tensors: Sequence[LaidTensor], inventory: Inventory) -> Mapping[str, str]:
    first = inventory.shaped_states(tensors[0].whole)
    for tensor in tensors[1:]:
        states = inventory.shaped_states(tensor.whole)
        if states != first:
            raise _missing(index, tensors[0].whole, first, tensor.whole, states)
    return first


def _missing(
    index: int, one: str, first: Mapping[str, str], other: str, second: Mapping[str, str]
) -> ReshardError:
    def listed(states: Mapping[str, str]) -> str:
        return ", ".join(f"`{state}`" for state in states.values())

    return target_error(
        "deepspeed-missing-state",
        f"parameters of group {index} have different states",
        notes=[
            f"`{one}` has {listed(first)}, `{other}` has {listed(second)}",
            "DeepSpeed keeps the states of a group in one flat array each",
        ],
        helps=["convert the weights alone with `--states weights`"],
    )
