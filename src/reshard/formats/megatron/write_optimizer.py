"""What is written of optimizers: in the files of ranks param groups with states by number, or in
the flat buffers of `distrib_optim.pt`; in `torch_dist` param groups, and states by key.

Source: torch/optim/optimizer.py `state_dict`; megatron/core/optimizer/optimizer.py
`FP32Optimizer`, `Float16OptimizerWithFloat16Params`, `ChainedOptimizer`; distrib_optimizer.py
`state_dict`, `get_parameter_state_dp_zero` (core 0.16.1).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

from reshard.dtypes import DType
from reshard.errors import ReshardError, target_error
from reshard.formats.megatron.buffers import COALESCED, UNPADDED, in_one_tensor, lay
from reshard.formats.megatron.groups import Optimizer, Settings, carried_groups
from reshard.formats.megatron.names import STATE, stacked_axes
from reshard.formats.megatron.write_job import Job
from reshard.plan.arrangement import Whole
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec
from reshard.run.states import MASTER, MOMENTS, REMAINDER
from reshard.storage.torch_writer import NewTensor, torch_dtype

Chunks = Sequence[Sequence[LaidTensor]]
"""For each model chunk of a rank, the trained parameters in their order."""


def rank_optimizers(job: Job, chunks: Chunks, optimizers: Sequence[Optimizer], rank: str) -> object:
    """The entry `optimizer` of a rank's file: of several, a list.

    Args:  rank: its name, for messages.
    Raises: ReshardError[megatron-steps].
    """
    tensors = [tensor for chunk in chunks for tensor in chunk]
    trees: list[object] = []
    for optimizer in optimizers:
        if job.options.distributed:
            trees.append(_shared(job, optimizer.groups, job.inventory.step(optimizer.members)))
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
        for number, tensor in enumerate(members, count):
            values = _states(job, tensor, rank)
            if values:
                states[number] = values
        halves = [t for t in members if inventory.is_half(t.whole)]
        masters.append([job.tensor(t, inventory.master(t.whole), DType.F32, rank) for t in halves])
        if job.options.fused:
            step = inventory.step(t.whole for t in members)
            settings = _with_step(settings, step, fused=True)
        groups.append({**settings, "params": list(range(count, count + len(members)))})
        count += len(members)
    tree = _adam(job, optimizer.members, states, groups)
    return {**tree, "fp32_from_fp16_params": masters} if "optimizer" in tree else tree


def _adam(
    job: Job, names: Iterable[str], states: object, groups: Sequence[Settings]
) -> dict[str, object]:
    """An optimizer of torch's, in that of half-precision weights where it has some."""
    inner: dict[str, object] = {"state": states, "param_groups": list(groups)}
    is_wrapped = any(map(job.inventory.is_half, names))
    return {"optimizer": inner, **_scaler(job)} if is_wrapped else inner


def _states(job: Job, tensor: LaidTensor, rank: str) -> dict[str, object]:
    states: dict[str, object] = {}
    number = job.inventory.steps.get(tensor.whole)
    if number is not None and not job.options.fused:
        states["step"] = _step_tensor(job, number.value)
    for state, whole in job.inventory.optimizer_states(tensor.whole).items():
        states[state] = job.tensor(tensor, state, whole.dtype, rank)
    job.inventory.lose_master(tensor.whole)
    return states


def flat_buffers(
    job: Job,
    chunks: Chunks,
    optimizers: Sequence[Optimizer],
    rank: str,
    *,
    shared: Collection[str],
    is_first: bool,
    has_dense: bool,
) -> object:
    """What a rank's `distrib_optim.pt` holds: of several optimizers, a list.

    Args:  rank: for messages.  shared: embeddings that two stages share.
           is_first: whether it is of the first stage; on later ones nothing is bucketed.
           has_dense: whether the first of several is in this file; another rank's has it otherwise.
    Raises: ReshardError[megatron-distributed].
    """
    trees: list[object] = []
    for number, optimizer in enumerate(optimizers):
        tree: dict[object, object] = {COALESCED: True}
        for vpp, chunk in enumerate(chunks):
            by_type: dict[DType, list[LaidTensor]] = {}
            for tensor in chunk:
                if tensor.whole in optimizer.members:
                    by_type.setdefault(job.inventory.dtype(tensor.whole), []).append(tensor)
            for dtype, tensors in by_type.items():
                index = len(tree) - 1
                size = job.options.bucket_size if is_first and vpp == 0 else None
                label = f"{rank} buffer {index}"
                tree[index] = {_kinds(job, dtype): _buffer(job, tensors, size, label, shared)}
        trees.append(tree if has_dense or number > 0 or len(optimizers) == 1 else None)
    return trees[0] if len(trees) == 1 else trees


def _kinds(job: Job, dtype: DType) -> tuple[object, object]:
    """The types of weights and gradients; gradients of bf16 are fp32, if not said otherwise."""
    args = job.resume.args
    in_fp32 = args.get("accumulate_allreduce_grads_in_fp32")
    wide = in_fp32 if isinstance(in_fp32, bool) else dtype is not DType.F16
    wide = wide and args.get("grad_reduce_in_bf16") is not True
    return torch_dtype(dtype), torch_dtype(DType.F32 if wide else dtype)


def _buffer(
    job: Job, tensors: Sequence[LaidTensor], size: int | None, label: str, shared: Collection[str]
) -> Mapping[str, object]:
    for tensor in tensors:
        check_states(tensor.whole, list(job.inventory.optimizer_states(tensor.whole)))
    separate = [index for index, tensor in enumerate(tensors) if tensor.name in shared]
    places, lengths = lay([prod(t.shape) for t in tensors], size, separate)
    segments = tuple(
        (atom, piece.shift(start))
        for tensor, (_, start) in [*zip(tensors, in_one_tensor(places, lengths), strict=True)][::-1]
        for atom, piece in tensor.segments
    )
    numel = sum(lengths)
    states = {"param": _master(job, tensors), **{state: state for state in MOMENTS}}
    flats: dict[str, object] = {
        key: job.output.tensor(ArraySpec(f"{key} of {label}", state, DType.F32, numel, segments))
        for key, state in states.items()
    }
    return {**flats, UNPADDED: numel}


def _master(job: Job, tensors: Sequence[LaidTensor]) -> str:
    """The state of the source that the masters of a buffer are written of."""
    inventory, names = job.inventory, [tensor.whole for tensor in tensors]
    if job.has_remainders and inventory.remainders.issuperset(names):
        for name in names:
            inventory.fold(name, MASTER, _LOWER_HALVES)
        return REMAINDER
    masters = {inventory.master(name): name for name in names}
    if len(masters) > 1:
        raise mixed_masters(masters)
    return next(iter(masters))


def common_optimizers(job: Job) -> object:
    """The entry `optimizer` of a `torch_dist` checkpoint's common state.

    Raises: ReshardError[megatron-steps | megatron-groups].
    """
    inventory = job.inventory
    inventory.fold_steps()
    step = inventory.step(inventory.steps)
    groups = carried_groups(job.resume.groups, chained=job.options.ep > 1)
    if groups is None:
        shapes = {name: next(iter(inventory.states[name].values())).shape for name in job.trained}
        dims = {name: len(shape) - stacked_axes(name) for name, shape in shapes.items()}
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
    return _adam(job, job.trained, state, groups)


def dist_states(job: Job) -> Iterator[tuple[str, Whole, DType]]:
    """Keys of a `torch_dist` checkpoint's states, what they hold, and as what.

    Raises: ReshardError[megatron-distributed].
    """
    inventory = job.inventory
    for name in job.trained:
        moments = inventory.optimizer_states(name)
        master = inventory.states[name][inventory.master(name)]
        if job.options.distributed:
            check_states(name, list(moments))
            if name in inventory.remainders and job.has_remainders:
                inventory.fold(name, MASTER, _LOWER_HALVES)
                master = replace(master, state=REMAINDER)
            yield f"{STATE}param.{name}", master, DType.F32
        elif inventory.is_half(name):
            yield f"{STATE}fp32_param.{name}", master, DType.F32
        else:
            inventory.lose_master(name)
        for state, whole in moments.items():
            yield f"{STATE}{state}.{name}", whole, whole.dtype


_LOWER_HALVES = "the lower half of each, beside the weight"


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


def check_states(name: str, states: Sequence[str]) -> None:
    """Refuse a parameter with other states than the distributed optimizer keeps.

    Args:  states: of it, besides weights.
    Raises: ReshardError[megatron-distributed].
    """
    if {*states} == {*MOMENTS}:
        return
    text = ", ".join(f"`{state}`" for state in states) or "none"
    raise target_error(
        "megatron-distributed",
        f"the optimizer states of `{name}` are not those of Megatron's distributed optimizer",
        notes=[f"they are {text}", "the distributed optimizer has `exp_avg` and `exp_avg_sq`"],
        helps=[
            "write `distributed_optimizer=0`, which can have any states",
            "or leave the optimizer out with `--states weights`",
        ],
    )


def mixed_masters(names: Mapping[str, str]) -> ReshardError:
    """The error for one buffer of weights with and without masters, one name for each state."""
    return target_error(
        "megatron-distributed",
        "some parameters have master weights, and others of the same type have none",
        notes=[f"`{name}` has `{state}`" for state, name in names.items()],
        helps=["leave the optimizer out with `--states weights`"],
    )
