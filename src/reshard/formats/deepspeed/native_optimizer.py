"""Optimizer files of stages 1 to 3: one rank's share of every state.

Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `state_dict`, runtime/zero/stage3.py
`_rigid_state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod

from reshard.algebra.partition import aligned_gaps, round_robin, sub_groups
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
from reshard.plan.slice import in_shares
from reshard.storage.inert import Record
from reshard.storage.torch_output import TorchOutput


@dataclass(frozen=True, slots=True)
class WrittenGroup(FlatGroup):
    """A group whose partitions are to be filled.

    Args:  tensors: in the order of the buffer.
           states: DeepSpeed's name of each state (`fp32` first) -> the source's.
    """

    tensors: tuple[LaidTensor, ...]
    states: Mapping[str, str]

    def array(
        self, dp_rank: int, state: str, dtype: DType, *, stripped: int = 0, is_whole: bool = False
    ) -> ArraySpec:
        """A rank's flat array of one state.

        Args:  state: as DeepSpeed names it.  stripped: elements at its end that are not written.
               is_whole: it has all of every tensor that the rank has some of, one by one.
        """
        partition = self.partition(dp_rank)
        segments: list[tuple[str, Piece]] = []
        numel = self.cut.lengths[partition] - stripped
        if is_whole:
            numel = 0
            for tensor in (self.tensors[index] for index in self.touched(partition)):
                segments += [(key, piece.shift(numel)) for key, piece in tensor.segments]
                numel += prod(tensor.shape)
        else:
            for share in self.cut.by_rank[partition]:
                segments += in_shares(self.tensors[share.tensor].segments, (share,))
        label = f"{state} of group {self.index} for dp={dp_rank}"
        return ArraySpec(label, self.states[state], dtype, numel, tuple(segments))


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
        entries_of_file: Mapping[str, object],
        kept: Mapping[int, Mapping[str, object]],
    ) -> dict[str, object]:
        """The whole tree of one rank's file.

        Args:  entries_of_file: what this file alone has.
               kept: by group, states that are written as they were found.
        """
        make = self._zero3 if self.options.zero == 3 else self._zero12
        entries = {key: value for key, value in entries_of_file.items() if key != "param_groups"}
        stated = entries_of_file.get("param_groups")
        base = self._base(groups, dp_rank, stated if isinstance(stated, list) else [], kept)
        return {
            "optimizer_state_dict": with_own(make(groups, dp_rank, base), entries),
            "ds_config": self.options.config(self.resume),
            "ds_version": self.resume.version,
        }

    def _zero12(
        self, groups: Sequence[WrittenGroup], dp_rank: int, base: Mapping[str, object]
    ) -> dict[str, object]:
        paddings = [group.padding(dp_rank) for group in groups]
        slices = [group.slices(group.partition(dp_rank)) for group in groups]
        return {
            **self._scaling(),
            **self._other(1, 2),
            BASE: base,
            MASTERS: [
                self._array(group, dp_rank, FP32, padding)
                for group, padding in zip(groups, paddings, strict=True)
            ],
            "zero_stage": _zero_stage(self.options.zero),
            "group_paddings": paddings,
            "param_alignment_paddings": [list(group.gaps) for group in groups],
            "partition_count": [len(group.members) for group in groups],
            "ds_version": self.resume.version,
            "param_slice_mappings": [
                {name: _address(numel, start) for name, (start, numel) in mapping.items()}
                for mapping in slices
            ],
        }

    def _zero3(
        self, groups: Sequence[WrittenGroup], dp_rank: int, base: Mapping[str, object]
    ) -> dict[str, object]:
        return {
            "zero_stage": _zero_stage(3),
            "loss_scaler": loss_scaler(),
            "dynamic_loss_scale": False,
            "overflow": False,
            **{key: value for key, value in self._scaling().items() if key != "clip_grad"},
            **self._other(3),
            "partition_count": self.options.dp,
            BASE_ZERO3: base,
            MASTERS_ZERO3: [self._array(group, dp_rank, FP32) for group in groups],
        }

    def _scaling(self) -> dict[str, object]:
        return self.resume.scaling(same=self.options.is_same_type)

    def _other(self, *stages: int) -> dict[str, object]:
        """Entries of no known meaning, for an optimizer of the same kind."""
        return dict(self.resume.optimizer_other) if self.resume.zero_stage in stages else {}

    def _base(
        self,
        groups: Sequence[WrittenGroup],
        dp_rank: int,
        stated: Sequence[Mapping[str, object]],
        kept: Mapping[int, Mapping[str, object]],
    ) -> dict[str, object]:
        """What the optimizer itself keeps: its states by number, and its param groups.

        Args:  stated: the groups as the source's file of the same rank has them, if it says more.
        """
        states: dict[int, object] = {}
        members: dict[int, list[int]] = {}
        for number, group in enumerate(groups):
            members.setdefault(group.index, []).append(number)
            if entries := {**self._states(group, dp_rank), **kept.get(number, {})}:
                states[number] = entries
        settings = [group.settings for group in self.resume.groups]
        if len(stated) == len(settings):
            settings = [{k: v for k, v in group.items() if k != "params"} for group in stated]
        param_groups = [
            {**settings[index], "params": entries} for index, entries in members.items()
        ]
        return {"state": states, "param_groups": param_groups}

    def _states(self, group: WrittenGroup, dp_rank: int) -> dict[str, object]:
        states: dict[str, object] = {}
        for state, numbers in self.inventory.numbers.items():
            number = numbers.get(group.tensors[0].whole)
            if number is not None:
                for tensor in group.tensors[1:]:
                    self.inventory.fold(tensor.whole, state, "one per param group")
                states[state] = self.inventory.number(number, self.output)
        others = (state for state in group.states if state != FP32)
        return states | {state: self._array(group, dp_rank, state) for state in others}

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
        is_master = state == FP32
        stored = self.inventory.whole(group.tensors[0].whole, group.states[state]).dtype
        dtype = DType.F32 if is_master else stored
        is_whole = self._is_whole(group, state)
        spec = group.array(dp_rank, state, dtype, stripped=stripped, is_whole=is_whole)
        return self.output.tensor(spec, requires_grad=is_master)


def _zero_stage(stage: int) -> Record:
    """A member of DeepSpeed's enum of stages."""
    return Record("deepspeed.runtime.zero.config", "ZeroStageEnum", (stage,))


def _address(numel: int, start: int) -> Record:
    fields = {"numel": numel, "start": start}
    return Record("deepspeed.utils.tensor_fragment", "fragment_address", (), "newobj", [fields])


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
        tensors = [held[name] for name in group.members if name in held]
        if not tensors:
            continue
        members = _members(index, tensors, options, ep_rank)
        states = _states(index, tensors, inventory)
        count = len(members)
        if options.zero < 3 and options.round_robin:
            tensors = [tensors[i] for i in round_robin(len(tensors), count)]
        numels = [prod(tensor.shape) for tensor in tensors]
        gaps: tuple[int, ...] = ()
        if options.param_alignment:
            width = inventory.weights(tensors[0].whole, options.stored, options.dtype)[1].itemsize
            gaps = aligned_gaps(numels, 16 // gcd(16, width))
        parts = [range(len(tensors))]
        if options.zero == 3:
            parts = sub_groups(numels, count, options.sub_group_size)
        for part in parts:
            group_tensors = tuple(tensors[i] for i in part)
            shapes = {tensor.name: tensor.shape for tensor in group_tensors}
            flat = flat_group(options.zero, index, shapes, members, gaps, 2 * count)
            out.append(
                WrittenGroup(index, shapes, members, flat.gaps, flat.cut, group_tensors, states)
            )
    return tuple(out)


def _members(
    index: int, tensors: Sequence[LaidTensor], options: NativeOptions, ep_rank: int
) -> range:
    """The data-parallel ranks that share a group."""
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
    """The states of a group, which all its tensors must have."""
    states = {tensor.whole: inventory.shaped_states(tensor.whole) for tensor in tensors}
    one, first = next(iter(states.items()))
    for other, own in states.items():
        if own != first:
            pairs = (
                (name, ", ".join(f"`{s}`" for s in states[name].values())) for name in (one, other)
            )
            raise target_error(
                "deepspeed-missing-state",
                f"parameters of group {index} have different states",
                notes=[
                    ", ".join(f"`{name}` has {listed}" for name, listed in pairs),
                    "DeepSpeed keeps the states of a group in one flat array each",
                ],
                helps=["convert the weights alone with `--states weights`"],
            )
    return first
