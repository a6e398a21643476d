"""Optimizer files of stages 1 to 3: one rank's share of every state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.formats.deepspeed.inventory import FP32, Inventory
from reshard.formats.deepspeed.native_groups import FlatGroup
from reshard.formats.deepspeed.native_options import NativeOptions
from reshard.formats.deepspeed.resume import Resume, loss_scaler, with_own
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
        groups: Sequence[FlatGroup],
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
        self, groups: Sequence[FlatGroup], dp_rank: int, base: Mapping[str, object]
    ) -> dict[str, object]:
        """Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `state_dict`."""
        masters = [
            self._array(group, dp_rank, FP32, group.length(dp_rank) - group.padding(dp_rank))
            for group in groups
        ]
        return {
            **self._scaling(),
            **self._other(1, 2),
            "base_optimizer_state": base,
            "single_partition_of_fp32_groups": masters,
            "zero_stage": zero_stage(self.options.zero),
            "group_paddings": [group.padding(dp_rank) for group in groups],
            "param_alignment_paddings": [list(group.gaps) for group in groups],
            "partition_count": [len(group.members) for group in groups],
            "ds_version": self.resume.version,
            "param_slice_mappings": [
                {
                    name: _address(numel, start)
                    for name, (numel, start) in group.slices(dp_rank).items()
                }
                for group in groups
            ],
        }

    def _zero3(
        self, groups: Sequence[FlatGroup], dp_rank: int, base: Mapping[str, object]
    ) -> dict[str, object]:
        """Source: DeepSpeed 0.19.8 runtime/zero/stage3.py `_rigid_state_dict`."""
        return {
            "zero_stage": zero_stage(3),
            "loss_scaler": loss_scaler(),
            "dynamic_loss_scale": False,
            "overflow": False,
            **self._scaling(),
            **self._other(3),
            "partition_count": self.options.dp,
            "optimizer_state_dict": base,
            "fp32_flat_groups": [
                self._array(group, dp_rank, FP32, group.length(dp_rank)) for group in groups
            ],
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
        groups: Sequence[FlatGroup],
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

    def _states(self, group: FlatGroup, dp_rank: int) -> dict[str, object]:
        own: dict[str, object] = {}
        for state, numbers in self.inventory.numbers.items():
            number = numbers.get(group.tensors[0].whole)
            if number is None:
                continue
            for tensor in group.tensors[1:]:
                self.inventory.fold(tensor.whole, state, "one per param group")
            own[state] = self.inventory.number(number, self.output)
        for state in group.states:
            if state == FP32:
                continue
            if self._is_whole(group, state):
                own[state] = self._whole(group, dp_rank, state)
            else:
                own[state] = self._array(group, dp_rank, state, group.length(dp_rank))
        return own

    def _is_whole(self, group: FlatGroup, state: str) -> bool:
        """Whether a rank keeps a state of all of every parameter that it has some of.

        Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `_muon_momentum_buffer` and
        `_apply_muon_updates_cpu_offload`.
        """
        settings = self.resume.groups[group.index].settings
        offload = self.resume.zero.get("offload_optimizer")
        device = offload.get("device") if isinstance(offload, dict) else None
        is_muon = settings.get("use_muon") is True and state == "momentum_buffer"
        return is_muon and self.options.zero < 3 and device in (None, "none")

    def _whole(self, group: FlatGroup, dp_rank: int, state: str) -> object:
        source = group.states[state]
        stored = self.inventory.whole(group.tensors[0].whole, source).dtype
        return self.output.tensor(group.touched(dp_rank, state, stored))

    def _array(self, group: FlatGroup, dp_rank: int, state: str, numel: int) -> object:
        source = group.states[state]
        stored = self.inventory.whole(group.tensors[0].whole, source).dtype
        spec = group.spec(dp_rank, state, DType.F32 if state == FP32 else stored, numel)
        return self.output.tensor(spec, requires_grad=state == FP32)


def zero_stage(stage: int) -> Record:
    """A member of DeepSpeed's enum of stages."""
    return Record("deepspeed.runtime.zero.config", "ZeroStageEnum", (stage,))


def _address(numel: int, start: int) -> Record:
    record = Record("deepspeed.utils.tensor_fragment", "fragment_address", (), "newobj")
    record.state.append({"numel": numel, "start": start})
    return record
