"""The optimizer of a `torch_dist` checkpoint: tensors by key, and what is common to all ranks.

Source: megatron/core/optimizer/optimizer.py `FP32Optimizer`, `Float16OptimizerWithFloat16Params`,
`ChainedOptimizer`; distrib_optimizer.py (core 0.16.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from reshard.dtypes import DType
from reshard.formats.megatron.distrib_optim import LOWER_HALVES, check_states
from reshard.formats.megatron.write_groups import (
    GroupBuilder,
    Settings,
    carried_groups,
)
from reshard.formats.megatron.write_inventory import Inventory
from reshard.formats.megatron.write_legacy_optimizer import scaler_entry, step_tensor, with_step
from reshard.formats.megatron.write_options import WriteOptions
from reshard.formats.megatron.write_resume import Resume
from reshard.plan.arrangement import Whole
from reshard.plan.build import REMAINDER
from reshard.storage.torch_output import TorchOutput

_PREFIX = "optimizer.state."
_STACKED = re.compile(r"(?:^|\.)layers\.(?!\d)")
_EXPERTS = ".experts.experts."


@dataclass(frozen=True, slots=True)
class DistOptimizer:
    """One optimizer, or one for dense parameters and one for experts."""

    inventory: Inventory
    resume: Resume
    options: WriteOptions
    output: TorchOutput
    builder: GroupBuilder

    def tensors(self) -> Iterator[tuple[str, Whole, DType]]:
        """Keys, what they hold, and as what.

        Raises: ReshardError[megatron-distributed].
        """
        precise = self.inventory.keeps_remainders(self.resume.args)
        for name in self._trained():
            kinds, own = self.inventory.states[name], self.inventory.own_states(name)
            master = kinds[self.inventory.master(name)]
            if self.options.distributed:
                check_states(name, list(own))
                if name in self.inventory.remainders and precise:
                    self.inventory.fold(name, "master", LOWER_HALVES)
                    master = replace(master, state=REMAINDER)
                yield f"{_PREFIX}param.{name}", master, DType.F32
            elif self.inventory.is_half(name):
                yield f"{_PREFIX}fp32_param.{name}", master, DType.F32
            elif "master" in kinds:
                self.inventory.lose(name, "master", "the weights are fp32 themselves")
            for state, whole in own.items():
                yield f"{_PREFIX}{state}.{name}", whole, whole.dtype

    def common(self) -> object:
        """The entry `optimizer` of `common.pt`.

        Raises: ReshardError[megatron-steps | megatron-groups].
        """
        self.inventory.fold_steps()
        step = self.inventory.step(self.inventory.steps)
        made = [self._common(groups, step) for groups in self._groups()]
        return made[0] if len(made) == 1 else dict(enumerate(made))

    def _common(self, groups: Sequence[Settings], step: float | None) -> dict[str, object]:
        options = self.options
        if options.distributed:
            return {
                "optimizer": {"param_groups": [with_step(g, step, options.fused) for g in groups]},
                **scaler_entry(self.resume),
                "param_state_sharding_type": "fully_reshardable",
            }
        state: dict[str, object] = {}
        if step is not None and not options.fused:
            state["common_step"] = step_tensor(self.output, step)
        if options.fused:
            groups = [with_step(group, step, fused=True) for group in groups]
        inner: dict[str, object] = {"state": state, "param_groups": list(groups)}
        if not any(self.inventory.is_half(name) for name in self._trained()):
            return inner
        return {"optimizer": inner, **scaler_entry(self.resume)}

    def _groups(self) -> Sequence[Sequence[Settings]]:
        carried = carried_groups(self.resume.groups, chained=self.options.ep > 1)
        if carried is not None:
            return carried
        parameters = {name: self._dims(name) for name in self._trained()}
        return [optimizer.groups for optimizer in self.builder.build(parameters)]

    def _dims(self, name: str) -> int:
        """Dimensions of one layer's tensor of one expert."""
        shape = next(iter(self.inventory.states[name].values())).shape
        return len(shape) - bool(_STACKED.search(name)) - (_EXPERTS in name)

    def _trained(self) -> list[str]:
        return [name for name in self.inventory.states if name not in self.inventory.resting]
