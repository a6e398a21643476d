"""What a rank's file holds of its optimizers: states by number, and param groups.

Source: torch/optim/optimizer.py `state_dict`; megatron/core/optimizer/optimizer.py
`FP32Optimizer`, `Float16OptimizerWithFloat16Params`, `ChainedOptimizer`; distrib_optimizer.py
`state_dict` (core 0.16.1).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from reshard.dtypes import DType
from reshard.formats.megatron.write_groups import Optimizer, Settings
from reshard.formats.megatron.write_inventory import Inventory
from reshard.formats.megatron.write_options import WriteOptions
from reshard.formats.megatron.write_resume import Resume
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec
from reshard.storage.torch_output import TorchOutput
from reshard.storage.torch_writer import NewTensor


@dataclass(frozen=True, slots=True)
class OptimizerStates:
    """The optimizers of one rank.

    Args:  rank: its name, for messages.
    """

    inventory: Inventory
    resume: Resume
    options: WriteOptions
    output: TorchOutput
    rank: str

    def root(
        self, chunks: Sequence[Sequence[LaidTensor]], optimizers: Sequence[Optimizer]
    ) -> object:
        """The entry `optimizer`: of several, a list.

        Args:  chunks: for each model chunk, the trained parameters in order.
        Raises: ReshardError[megatron-steps].
        """
        tensors = [tensor for chunk in chunks for tensor in chunk]
        make = self._distributed if self.options.distributed else self._plain
        made = [make(tensors, optimizer) for optimizer in optimizers]
        return made[0] if len(made) == 1 else made

    def _distributed(
        self, tensors: Sequence[LaidTensor], optimizer: Optimizer
    ) -> dict[str, object]:
        """Param groups alone: the states are in a file of their own."""
        step = self.inventory.step(optimizer.members)
        groups = [with_step(group, step, self.options.fused) for group in optimizer.groups]
        return {"optimizer": {"param_groups": groups}, **scaler_entry(self.resume)}

    def _plain(self, tensors: Sequence[LaidTensor], optimizer: Optimizer) -> dict[str, object]:
        groups: list[Settings] = []
        states: dict[int, dict[str, object]] = {}
        masters: list[list[NewTensor]] = []
        for index, settings in enumerate(optimizer.groups):
            members = [t for t in tensors if optimizer.members.get(t.whole) == index]
            numbers = range(len(states), len(states) + len(members))
            for number, tensor in zip(numbers, members, strict=True):
                states[number] = self._states(tensor)
            masters.append([self._master(t) for t in members if self.inventory.is_half(t.whole)])
            if self.options.fused:
                step = self.inventory.step(t.whole for t in members)
                settings = with_step(settings, step, fused=True)
            groups.append({**settings, "params": list(numbers)})
        inner: dict[str, object] = {
            "state": {number: own for number, own in states.items() if own},
            "param_groups": groups,
        }
        if not any(self.inventory.is_half(name) for name in optimizer.members):
            return inner
        return {
            "optimizer": inner,
            **scaler_entry(self.resume),
            "fp32_from_fp16_params": masters,
        }

    def _states(self, tensor: LaidTensor) -> dict[str, object]:
        own: dict[str, object] = {}
        number = self.inventory.steps.get(tensor.whole)
        if number is not None and not self.options.fused:
            own["step"] = step_tensor(self.output, number.value)
        for state, whole in self.inventory.own_states(tensor.whole).items():
            own[state] = self._tensor(tensor, state, whole.dtype)
        if "master" in self.inventory.states[tensor.whole] and not self.inventory.is_half(
            tensor.whole
        ):
            self.inventory.lose(tensor.whole, "master", "the weights are fp32 themselves")
        return own

    def _master(self, tensor: LaidTensor) -> NewTensor:
        return self._tensor(tensor, self.inventory.master(tensor.whole), DType.F32)

    def _tensor(self, tensor: LaidTensor, state: str, dtype: DType) -> NewTensor:
        label = f"{tensor.name} ({state}) of {self.rank}"
        numel = prod(tensor.shape)
        return self.output.tensor(
            ArraySpec(label, state, dtype, numel, tensor.segments, tensor.shape)
        )


def with_step(settings: Settings, step: float | None, fused: bool) -> Settings:
    """A group with the step that it is at: fused optimizers count in integers."""
    if step is None:
        return dict(settings)
    return {**settings, "step": int(step) if fused else float(step)}


def step_tensor(output: TorchOutput, value: float) -> NewTensor:
    """A step as torch's own optimizers keep it."""
    return output.constant(DType.F32, (), struct.pack("<f", value))


def scaler_entry(resume: Resume) -> dict[str, object]:
    """The loss scaler, where the source has one."""
    return {} if resume.scaler is None else {"grad_scaler": resume.scaler}
