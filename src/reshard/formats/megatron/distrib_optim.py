"""`distrib_optim.pt`: the states of the distributed optimizer, gathered over data-parallel ranks.

For every buffer it has flat tensors of the states of its parameters: read, and written.
Source: megatron/core/optimizer/distrib_optimizer.py `get_parameter_state_dp_zero`, megatron/core/
distributed/distributed_data_parallel.py (core 0.6 to 0.20; written as by core 0.16.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error, target_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.buffers import (
    COALESCED,
    UNPADDED,
    Member,
    Part,
    joined,
    lay,
    stored_buffers,
)
from reshard.formats.megatron.groups import Parameter
from reshard.formats.megatron.legacy import EMBEDDING, OUTPUT
from reshard.formats.megatron.self_check import Sampler
from reshard.formats.megatron.write_groups import Optimizer
from reshard.formats.megatron.write_job import Job
from reshard.plan.build import REMAINDER
from reshard.plan.catalog import Fragment, Left, LocalTensor, Upper
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec
from reshard.run.states import MASTER
from reshard.storage.torch_writer import torch_dtype

STATES = ("param", "exp_avg", "exp_avg_sq")
LOWER_HALVES = "the lower half of each, beside the weight"


def flat_states(
    root: object,
    parameters: Sequence[Parameter],
    args: Arguments,
    *,
    folder: Path,
    file: str,
    weights_file: str,
    sampler: Sampler,
    first_stage: bool,
    shared: Sequence[str],
) -> Iterator[tuple[Parameter, LocalTensor]]:
    """Every state of every parameter of one optimizer.

    Args:  root: its buffers.  parameters: of the optimizer, in order, over all model chunks.
           file, weights_file: relative to the iteration's folder.
           first_stage: on later pipeline stages nothing is bucketed.
           shared: embeddings that two stages share.
    Raises: ReshardError[buffer-mismatch].
    """
    if not isinstance(root, dict):
        raise _mismatch(file, "it holds no buffers")
    by_type: dict[tuple[int, DType], list[Parameter]] = {}  # in order of appearance
    for parameter in parameters:
        by_type.setdefault((parameter.chunk, parameter.ref.dtype), []).append(parameter)
    buffers = stored_buffers(root, folder)
    if len(buffers) != len(by_type):
        raise _mismatch(file, f"it has {len(buffers)} buffers, the weights ask for {len(by_type)}")
    for (key, buffer), ((chunk, dtype), group) in zip(buffers, by_type.items(), strict=True):
        if buffer is None:
            raise _mismatch(file, f"the tensors of buffer {key} have different lengths")
        if buffer.dtype not in (None, dtype):
            raise _mismatch(file, f"buffer {key} is of {buffer.dtype} parameters, not {dtype}")
        members = [_member(parameter, weights_file) for parameter in group]
        bucketed = first_stage and chunk == 0
        ways = buffer.places(members, args, shared, sampler, bucketed=bucketed)
        if len(ways) != 1:
            raise _mismatch(
                file,
                f"{len(ways)} known ways of laying {sum(p.numel for p in group)} elements of "
                f"parameters fit buffer {key} of {sum(buffer.lengths)} elements",
            )
        lower = buffer.has_lower(members, args, sampler)
        for state, flats in buffer.states.items():
            for parameter, (bucket, start) in zip(group, ways[0], strict=True):
                (run,), element, weight = flats[bucket].runs, flats[bucket].dtype, parameter.ref
                at = run.byte_offset + element.itemsize * start
                fragment = Fragment(0, weight.numel, run.file, at)
                if lower and state == MASTER:
                    upper = Upper(weights_file, weight.byte_offset, element)
                    fragment, element = replace(fragment, upper=upper), DType.F32
                yield (
                    parameter,
                    LocalTensor(parameter.name, state, (), weight.shape, element, (fragment,)),
                )


def _member(parameter: Parameter, file: str) -> Member:
    ref = parameter.ref
    at = ref.byte_offset if ref.is_contiguous else None
    box = Box.whole(ref.shape)
    return Member(
        parameter.name, (Part(parameter.name, box, ref.dtype, file, at, parameter.checked),)
    )


def unread(root: object, file: str) -> Iterator[Left]:
    """The entries of a file of buffers that are none, nor say how buffers were saved.

    Args:  root: of one optimizer, or of several.
    """
    for item in root if isinstance(root, list) else [root]:
        for key, value in item.items() if isinstance(item, dict) else ():
            if key != COALESCED and not (isinstance(key, int) and isinstance(value, dict)):
                yield Left(file, str(key), "it is no buffer of an optimizer")


def _mismatch(file: str, why: str) -> ReshardError:
    return source_error(
        "buffer-mismatch",
        f"how the parameters lie in {file} could not be found",
        notes=[why, "the flat buffers are checked against the weights, which they must round to"],
        helps=["leave the optimizer out with `--states weights`"],
    )


@dataclass(frozen=True, slots=True)
class Buffers:
    """What the buffers of all ranks have in common, to write them.

    Args:  tied: the embedding is also the output layer of a later stage.
    """

    job: Job
    tied: bool

    def trees(
        self,
        chunks: Sequence[Sequence[LaidTensor]],
        optimizers: Sequence[Optimizer],
        pp: int,
        rank: str,
        *,
        dense: bool,
    ) -> object:
        """What a rank's file holds: of several optimizers, a list.

        Args:  chunks: for each model chunk, the trained parameters in their order.
               rank: for messages.
               dense: whether the first of several is in this file; another rank's has it otherwise.
        Raises: ReshardError[megatron-distributed].
        """
        out: list[object] = []
        for index, optimizer in enumerate(optimizers):
            parts = [[t for t in chunk if t.whole in optimizer.members] for chunk in chunks]
            is_in_file = dense or index > 0 or len(optimizers) == 1
            out.append(self._tree(parts, pp, rank) if is_in_file else None)
        return out[0] if len(out) == 1 else out

    def _tree(self, chunks: Sequence[Sequence[LaidTensor]], pp: int, rank: str) -> object:
        out: dict[object, object] = {COALESCED: True}
        for vpp, chunk in enumerate(chunks):
            by_type: dict[DType, list[LaidTensor]] = {}
            for tensor in chunk:
                by_type.setdefault(self.job.inventory.weights(tensor.whole)[1], []).append(tensor)
            for dtype, tensors in by_type.items():
                index = len(out) - 1
                size = self.job.options.bucket_size if pp == vpp == 0 else None
                flats = self._flats(tensors, size, f"{rank} buffer {index}")
                out[index] = {self._kinds(dtype): flats}
        return out

    def _kinds(self, dtype: DType) -> tuple[object, object]:
        """The types of weights and gradients; gradients of bf16 are fp32, if not said otherwise."""
        args = self.job.resume.args
        in_fp32 = args.get("accumulate_allreduce_grads_in_fp32")
        wide = in_fp32 if isinstance(in_fp32, bool) else dtype is not DType.F16
        if args.get("grad_reduce_in_bf16") is True:
            wide = False
        return torch_dtype(dtype), torch_dtype(DType.F32 if wide else dtype)

    def _flats(
        self, tensors: Sequence[LaidTensor], size: int | None, label: str
    ) -> Mapping[str, object]:
        for tensor in tensors:
            check_states(tensor.whole, list(self.job.inventory.own_states(tensor.whole)))
        shared = (EMBEDDING, OUTPUT) if self.tied else ()
        apart = [index for index, tensor in enumerate(tensors) if tensor.name in shared]
        places, lengths = lay([prod(t.shape) for t in tensors], size, apart)
        placed = [*zip(tensors, joined(places, lengths), strict=True)][::-1]
        out: dict[str, object] = {}
        for key in STATES:
            segments = tuple(
                (atom, piece.shift(start))
                for tensor, (_, start) in placed
                for atom, piece in tensor.segments
            )
            state, numel = self._state(key, tensors), sum(lengths)
            spec = ArraySpec(f"{key} of {label}", state, DType.F32, numel, segments)
            out[key] = self.job.output.tensor(spec)
        return {**out, UNPADDED: sum(lengths)}

    def _state(self, key: str, tensors: Sequence[LaidTensor]) -> str:
        """The source's name of a state."""
        if key != "param":
            return key
        if self.job.has_remainders and all(
            t.whole in self.job.inventory.remainders for t in tensors
        ):
            for tensor in tensors:
                self.job.inventory.fold(tensor.whole, MASTER, LOWER_HALVES)
            return REMAINDER
        masters = {self.job.inventory.master(tensor.whole): tensor.whole for tensor in tensors}
        if len(masters) > 1:
            raise mixed_masters(masters)
        return next(iter(masters))


def check_states(name: str, states: Sequence[str]) -> None:
    """Refuse a parameter with other states than the distributed optimizer keeps.

    Args:  states: of it, besides weights.
    Raises: ReshardError[megatron-distributed].
    """
    if {*states} == {*STATES[1:]}:
        return
    text = ", ".join(f"`{state}`" for state in states) or "none"
    raise target_error(
        "megatron-distributed",
        f"the optimizer's states of `{name}` are not those that Megatron's distributed one keeps",
        notes=[f"they are {text}", "the distributed one keeps `exp_avg` and `exp_avg_sq`"],
        helps=[
            "write `distributed_optimizer=0`, which keeps any states",
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
