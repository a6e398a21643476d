"""What is written of optimizers beside the distributed one's buffers: states by number in the files
of ranks, states by key in `torch_dist`, and param groups.

Source: torch/optim/optimizer.py `state_dict`; megatron/core/optimizer/optimizer.py
`FP32Optimizer`, `Float16OptimizerWithFloat16Params`, `ChainedOptimizer`; distrib_optimizer.py
`state_dict` (core 0.16.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

from reshard.dtypes import DType
from reshard.formats.megatron.dist_names import STATE, stacked_axes
from reshard.formats.megatron.distrib_optim import LOWER_HALVES, check_states
from reshard.formats.megatron.write_groups import Optimizer, Settings, carried_groups
from reshard.formats.megatron.write_job import Job
from reshard.plan.arrangement import Whole
from reshard.plan.build import REMAINDER
from reshard.plan.lay_out import LaidTensor
from reshard.run.states import MASTER
from reshard.storage.torch_writer import NewTensor


def rank_optimizers(
    job: Job, tensors: Sequence[LaidTensor], optimizers: Sequence[Optimizer], rank: str
) -> object:
    """The entry `optimizer` of a rank's file: of several, a list.

    Args:  tensors: the trained parameters of all its model chunks, in order.
           rank: its name, for messages.
    Raises: ReshardError[megatron-steps].
    """
    trees: list[object] = []
    for optimizer in optimizers:
        if job.options.distributed:
            step = job.inventory.step(optimizer.members)
            trees.append(_shared(job, optimizer.groups, step))
        else:
            trees.append(_plain(job, tensors, optimizer, rank))
    return trees[0] if len(trees) == 1 else trees


def _shared(job: Job, groups: Sequence[Settings], step: float | None) -> dict[str, object]:
    """Of the distributed optimizer, param groups alone: the states lie elsewhere."""
    param_groups = [_with_step(group, step, job.options.fused) for group in groups]
    return {"optimizer": {"param_groups": param_groups}, **_scaler(job)}


def _plain(
    job: Job, tensors: Sequence[LaidTensor], optimizer: Optimizer, rank: str
) -> dict[str, object]:
    """States by number, group by group, and masters by group."""
    inventory = job.inventory
    groups: list[Settings] = []
    states: dict[int, dict[str, object]] = {}
    masters: list[list[NewTensor]] = []
    count = 0
    for index, settings in enumerate(optimizer.groups):
        members = [t for t in tensors if optimizer.members.get(t.whole) == index]
        numbers = list(range(count, count + len(members)))
        count += len(members)
        for number, tensor in zip(numbers, members, strict=True):
            values = _states(job, tensor, rank)
            if values:
                states[number] = values
        masters.append(
            [
                job.tensor(t, inventory.master(t.whole), DType.F32, rank)
                for t in members
                if inventory.is_half(t.whole)
            ]
        )
        if job.options.fused:
            step = inventory.step(t.whole for t in members)
            settings = _with_step(settings, step, fused=True)
        groups.append({**settings, "params": numbers})
    inner: dict[str, object] = {"state": states, "param_groups": groups}
    if not any(map(inventory.is_half, optimizer.members)):
        return inner
    return {"optimizer": inner, **_scaler(job), "fp32_from_fp16_params": masters}


def _states(job: Job, tensor: LaidTensor, rank: str) -> dict[str, object]:
    states: dict[str, object] = {}
    number = job.inventory.steps.get(tensor.whole)
    if number is not None and not job.options.fused:
        states["step"] = _step_tensor(job, number.value)
    for state, whole in job.inventory.own_states(tensor.whole).items():
        states[state] = job.tensor(tensor, state, whole.dtype, rank)
    job.inventory.lose_master(tensor.whole)
    return states


def common_optimizers(job: Job) -> object:
    """The entry `optimizer` of a `torch_dist` checkpoint's common state.

    Raises: ReshardError[megatron-steps | megatron-groups].
    """
    job.inventory.fold_steps()
    step = job.inventory.step(job.inventory.steps)
    groups = carried_groups(job.resume.groups, chained=job.options.ep > 1)
    if groups is None:
        states = job.inventory.states
        dims = {
            name: len(next(iter(states[name].values())).shape) - stacked_axes(name)
            for name in job.trained()
        }
        groups = tuple(optimizer.groups for optimizer in job.builder.build(dims))
    trees = [_common(job, param_groups, step) for param_groups in groups]
    return trees[0] if len(trees) == 1 else dict(enumerate(trees))


def _common(job: Job, groups: Sequence[Settings], step: float | None) -> dict[str, object]:
    if job.options.distributed:
        shared = _shared(job, groups, step)
        return {**shared, "param_state_sharding_type": "fully_reshardable"}
    state: dict[str, object] = {}
    if job.options.fused:
        groups = [_with_step(group, step, fused=True) for group in groups]
    elif step is not None:
        state["common_step"] = _step_tensor(job, step)
    inner: dict[str, object] = {"state": state, "param_groups": list(groups)}
    if not any(map(job.inventory.is_half, job.trained())):
        return inner
    return {"optimizer": inner, **_scaler(job)}


def dist_states(job: Job) -> Iterator[tuple[str, Whole, DType]]:
    """Keys of a `torch_dist` checkpoint's states, what they hold, and as what.

    Raises: ReshardError[megatron-distributed].
    """
    inventory = job.inventory
    for name in job.trained():
        others = inventory.own_states(name)
        master = inventory.states[name][inventory.master(name)]
        if job.options.distributed:
            check_states(name, list(others))
            if name in inventory.remainders and job.has_remainders:
                inventory.fold(name, MASTER, LOWER_HALVES)
                master = replace(master, state=REMAINDER)
            yield f"{STATE}param.{name}", master, DType.F32
        elif inventory.is_half(name):
            yield f"{STATE}fp32_param.{name}", master, DType.F32
        else:
            inventory.lose_master(name)
        for state, whole in others.items():
            yield f"{STATE}{state}.{name}", whole, whole.dtype


def _with_step(settings: Settings, step: float | None, fused: bool) -> Settings:
    """A group with the step that it is at: fused optimizers count in integers."""
    if step is None:
        return dict(settings)
    return {**settings, "step": int(step) if fused else float(step)}


def _step_tensor(job: Job, value: float) -> NewTensor:
    """A step as torch's own optimizers keep it."""
    return job.output.constant(DType.F32, (), struct.pack("<f", value))


def _scaler(job: Job) -> dict[str, object]:
    """The loss scaler, where the source has one."""
    return {} if job.resume.scaler is None else {"grad_scaler": job.resume.scaler}
