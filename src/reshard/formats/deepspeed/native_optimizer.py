"""Optimizer files of stages 1 to 3: one rank's share of every state.

Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `state_dict`, runtime/zero/stage3.py
`_rigid_state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod

from reshard.algebra.flat import cut
from reshard.algebra.partition import Share, aligned_gaps, round_robin, sub_groups
from reshard.algebra.piece import Piece
from reshard.dtypes import DType
from reshard.errors import target_error
from reshard.formats.deepspeed.groups import FlatGroup, flat_group
from reshard.formats.deepspeed.inventory import FP32, Inventory
from reshard.formats.deepspeed.native_options import NativeOptions
from reshard.formats.deepspeed.optimizer_file import BASE, BASE_ZERO3, MASTERS, MASTERS_ZERO3
from reshard.formats.deepspeed.resume import Resume, loss_scaler, with_own
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec
from reshard.storage.inert import Record
from reshard.storage.torch_output import TorchOutput


@dataclass(frozen=True, slots=True)
class OptimizerFiles:
    """What all optimizer files have in common."""

    inventory: Inventory
    resume: Resume
    options: NativeOptions
    output: TorchOutput

    def root(
        self,
        groups: Sequence[WrittenGroup],
        dp_rank: int,
        own: Mapping[str, object],
        kept: Mapping[int, Mapping[str, object]],
    ) -> dict[str, object]:
        """The whole tree of one rank's file.

        Args:  own: entries that this file alone has.
               kept: by group, states that are written as they were found.
        """
        make = self._zero3 if self.options.zero == 3 else self._zero12
        entries = {key: value for key, value in own.items() if key != "param_groups"}
        told = own.get("param_groups")
        base = self._base(groups, dp_rank, told if isinstance(told, list) else [], kept)
        return {
            "optimizer_state_dict": with_own(make(groups, dp_rank, base), entries),
            "ds_config": self.options.config(self.resume),
            "ds_version": self.resume.version,
        }

    def _zero12(
        self, groups: Sequence[WrittenGroup], dp_rank: int, base: Mapping[str, object]
    ) -> dict[str, object]:
        paddings = [group.padding(dp_rank) for group in groups]
        return {
            **self._scaling(),
            **self._other(1, 2),
            BASE: base,
            MASTERS: [
                self._array(group, dp_rank, FP32, padding)
                for group, padding in zip(groups, paddings, strict=True)
            ],
            "zero_stage": zero_stage(self.options.zero),
            "group_paddings": paddings,
            "param_alignment_paddings": [list(group.gaps) for group in groups],
            "partition_count": [len(group.members) for group in groups],
            "ds_version": self.resume.version,
            "param_slice_mappings": [
                {
                    name: _address(numel, start)
                    for name, (start, numel) in group.slices(group.partition(dp_rank)).items()
                }
                for group in groups
            ],
        }

    def _zero3(
        self, groups: Sequence[WrittenGroup], dp_rank: int, base: Mapping[str, object]
    ) -> dict[str, object]:
        return {
            "zero_stage": zero_stage(3),
            "loss_scaler": loss_scaler(),
            "dynamic_loss_scale": False,
            "overflow": False,
            **self._scaling(),
            **self._other(3),
            "partition_count": self.options.dp,
            BASE_ZERO3: base,
            MASTERS_ZERO3: [self._array(group, dp_rank, FP32) for group in groups],
        }

    def _scaling(self) -> dict[str, object]:
        found = self.resume.scaling(same=self.options.dtype is self.options.stored)
        if self.options.zero == 3:
            found.pop("clip_grad", None)
        return found

    def _other(self, *stages: int) -> dict[str, object]:
        """Entries of no known meaning, for an optimizer of the same kind."""
        return dict(self.resume.optimizer_other) if self.resume.zero_stage in stages else {}

    def _base(
        self,
        groups: Sequence[WrittenGroup],
        dp_rank: int,
        told: Sequence[Mapping[str, object]],
        kept: Mapping[int, Mapping[str, object]],
    ) -> dict[str, object]:
        """What the optimizer itself keeps: its states by number, and its param groups.

        Args:  told: the groups as the source's file of the same rank has them, if it says more.
        """
        states = {
            number: own
            for number, group in enumerate(groups)
            if (own := {**self._states(group, dp_rank), **kept.get(number, {})})
        }
        members: dict[int, list[int]] = {}
        for number, group in enumerate(groups):
            members.setdefault(group.index, []).append(number)
        settings = [group.settings for group in self.resume.groups]
        if len(told) == len(settings):
            settings = [{k: v for k, v in group.items() if k != "params"} for group in told]
        return {
            "state": states,
            "param_groups": [
                {**settings[index], "params": numbers} for index, numbers in members.items()
            ],
        }

    def _states(self, group: WrittenGroup, dp_rank: int) -> dict[str, object]:
        own: dict[str, object] = {}
        for state, numbers in self.inventory.numbers.items():
            number = numbers.get(group.tensors[0].whole)
            if number is None:
                continue
            for tensor in group.tensors[1:]:
                self.inventory.fold(tensor.whole, state, "one per param group")
            own[state] = self.inventory.number(number, self.output)
        for state in group.states:
            if state != FP32:
                own[state] = self._array(group, dp_rank, state)
        return own

    def _is_whole(self, group: WrittenGroup, state: str) -> bool:
        """Whether a rank keeps a state of all of every parameter that it has some of.

        Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `_muon_momentum_buffer` and
        `_apply_muon_updates_cpu_offload`.
        """
        settings = self.resume.groups[group.index].settings
        offload = self.resume.zero.get("offload_optimizer")
        device = offload.get("device") if isinstance(offload, dict) else None
        is_muon = settings.get("use_muon") is True and state == "momentum_buffer"
        return is_muon and self.options.zero < 3 and device in (None, "none")

    def _array(self, group: WrittenGroup, dp_rank: int, state: str, stripped: int = 0) -> object:
        """A rank's tensor of a state.

        Args:  stripped: elements at its end that are not written.
        """
        source = group.states[state]
        stored = self.inventory.whole(group.tensors[0].whole, source).dtype
        if self._is_whole(group, state):
            return self.output.tensor(group.wholes(dp_rank, state, stored))
        spec = group.shares(dp_rank, state, DType.F32 if state == FP32 else stored, stripped)
        return self.output.tensor(spec, requires_grad=state == FP32)


def zero_stage(stage: int) -> Record:
    """A member of DeepSpeed's enum of stages."""
    return Record("deepspeed.runtime.zero.config", "ZeroStageEnum", (stage,))


def _address(numel: int, start: int) -> Record:
    record = Record("deepspeed.utils.tensor_fragment", "fragment_address", (), "newobj")
    record.state.append({"numel": numel, "start": start})
    return record


@dataclass(frozen=True, slots=True)
class WrittenGroup(FlatGroup):
    """A group whose partitions are to be filled.

    Args:  tensors: in the order of the buffer.
           states: DeepSpeed's name of each state (`fp32` first) -> the source's.
    """

    tensors: tuple[LaidTensor, ...]
    states: Mapping[str, str]

    def shares(self, dp_rank: int, state: str, dtype: DType, stripped: int) -> ArraySpec:
        """A rank's flat array of one state.

        Args:  state: as DeepSpeed names it.  stripped: elements at its end that are not written.
        """
        partition = self.partition(dp_rank)
        segments = tuple(
            item
            for share in self.cut.by_rank[partition]
            for item in placed(self.tensors[share.tensor].segments, share)
        )
        numel = self.cut.lengths[partition] - stripped
        return self._spec(dp_rank, state, dtype, numel, segments)

    def wholes(self, dp_rank: int, state: str, dtype: DType) -> ArraySpec:
        """A state of all of every tensor that a rank has some of, one behind the other."""
        segments: list[tuple[str, Piece]] = []
        numel = 0
        for tensor in (self.tensors[i] for i in self.touched(self.partition(dp_rank))):
            segments += [(key, piece.shift(numel)) for key, piece in tensor.segments]
            numel += prod(tensor.shape)
        return self._spec(dp_rank, state, dtype, numel, tuple(segments))

    def _spec(
        self,
        dp_rank: int,
        state: str,
        dtype: DType,
        numel: int,
        segments: tuple[tuple[str, Piece], ...],
    ) -> ArraySpec:
        label = f"{state} of group {self.index} for dp={dp_rank}"
        return ArraySpec(label, self.states[state], dtype, numel, segments)


def placed(segments: Sequence[tuple[str, Piece]], share: Share) -> Iterator[tuple[str, Piece]]:
    """What a share takes of a tensor, at its place in the rank's array."""
    for key, piece in segments:
        for held in cut(piece, share.start, share.start + share.numel):
            yield key, held.shift(share.offset - share.start)


def written_groups(
    held: Mapping[str, LaidTensor],
    inventory: Inventory,
    resume: Resume,
    options: NativeOptions,
    ep_rank: int,
) -> tuple[WrittenGroup, ...]:
    """The groups of one model-parallel rank, as far as an expert-parallel rank has them.

    Args:  held: the tensors that are there, by the name of the whole one.
    Raises: ReshardError[deepspeed-missing-state | deepspeed-mixed-group].
    """
    out: list[WrittenGroup] = []
    for index, group in enumerate(resume.groups):
        tensors = [held[name] for name in group.params or () if name in held]
        if not tensors:
            continue
        members = _members(index, tensors, options, ep_rank)
        states = _states(index, tensors, inventory)
        count = len(members)
        parts = [range(len(tensors))]
        if options.zero == 3:
            numels = [prod(tensor.shape) for tensor in tensors]
            parts = sub_groups(numels, count, options.sub_group_size)
        elif options.round_robin:
            tensors = [tensors[i] for i in round_robin(len(tensors), count)]
        gaps: tuple[int, ...] = ()
        if options.param_alignment:
            width = inventory.weights(tensors[0].whole, options.stored, options.dtype)[1].itemsize
            numels = [prod(tensor.shape) for tensor in tensors]
            gaps = aligned_gaps(numels, 16 // gcd(16, width))
        for part in parts:
            own = tuple(tensors[i] for i in part)
            shapes = {tensor.name: tensor.shape for tensor in own}
            flat = flat_group(options.zero, index, shapes, members, gaps, 2 * count)
            out.append(WrittenGroup(index, shapes, members, flat.gaps, flat.cut, own, states))
    return tuple(out)


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
    return options.sharing[ep_rank]


def _states(index: int, tensors: Sequence[LaidTensor], inventory: Inventory) -> Mapping[str, str]:
    def listed(states: Mapping[str, str]) -> str:
        return ", ".join(f"`{state}`" for state in states.values())

    first = inventory.shaped_states(tensors[0].whole)
    for tensor in tensors[1:]:
        states = inventory.shaped_states(tensor.whole)
        if states != first:
            raise target_error(
                "deepspeed-missing-state",
                f"parameters of group {index} have different states",
                notes=[
                    f"`{tensors[0].whole}` has {listed(first)}, "
                    f"`{tensor.whole}` has {listed(states)}",
                    "DeepSpeed keeps the states of a group in one flat array each",
                ],
                helps=["convert the weights alone with `--states weights`"],
            )
    return first
