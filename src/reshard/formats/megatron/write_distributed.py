"""`distrib_optim.pt` of one rank: the states of all parameters in flat buffers.

Source: megatron/core/optimizer/distrib_optimizer.py `get_parameter_state_dp_zero`,
megatron/core/distributed/distributed_data_parallel.py (core 0.16.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.dtypes import DType
from reshard.errors import ReshardError, target_error
from reshard.formats.megatron.buffers import Placed, lay_buffer
from reshard.formats.megatron.write_arguments import EMBEDDING, OUTPUT
from reshard.formats.megatron.write_groups import Optimizer
from reshard.formats.megatron.write_inventory import Inventory
from reshard.formats.megatron.write_options import WriteOptions
from reshard.formats.megatron.write_resume import Resume
from reshard.plan.build import REMAINDER
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec
from reshard.storage.torch_output import TorchOutput
from reshard.storage.torch_writer import NewTensor, torch_dtype

STATES = ("param", "exp_avg", "exp_avg_sq")
LOWER_HALVES = "the lower half of each, beside the weight"
_OWN = frozenset(STATES[1:])


@dataclass(frozen=True, slots=True)
class _Member:
    """A parameter of a buffer."""

    tensor: LaidTensor

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def numel(self) -> int:
        return prod(self.tensor.shape)


@dataclass(frozen=True, slots=True)
class Buffers:
    """What the buffers of all ranks have in common.

    Args:  tied: the embedding is also the output layer of a later stage.
    """

    inventory: Inventory
    resume: Resume
    options: WriteOptions
    output: TorchOutput
    tied: bool

    def root(
        self, chunks: Sequence[Sequence[LaidTensor]], pp: int, label: str
    ) -> dict[object, object]:
        """The tree of one optimizer.

        Args:  chunks: for each model chunk, the optimizer's parameters in their order.
               label: of the rank, for messages.
        Raises: ReshardError[megatron-distributed].
        """
        out: dict[object, object] = {"buckets_coalesced": True}
        index = 0
        for vpp, chunk in enumerate(chunks):
            by_type: dict[DType, list[LaidTensor]] = {}
            for tensor in chunk:
                by_type.setdefault(self.inventory.weights(tensor.whole)[1], []).append(tensor)
            for dtype, tensors in by_type.items():
                bucketed = pp == 0 and vpp == 0
                out[index] = {
                    self._kinds(dtype): self._buffer(tensors, bucketed, f"{label} {index}")
                }
                index += 1
        return out

    def chained(
        self,
        chunks: Sequence[Sequence[LaidTensor]],
        optimizers: Sequence[Optimizer],
        pp: int,
        rank: str,
        *,
        dense: bool,
    ) -> object:
        """The tree of a rank's file: of several optimizers, a list.

        Args:  dense: whether the first of several is in this file; another rank's has it otherwise.
        Raises: ReshardError[megatron-distributed].
        """
        out: list[object] = []
        for index, optimizer in enumerate(optimizers):
            own = [[t for t in chunk if t.whole in optimizer.members] for chunk in chunks]
            here = dense or index > 0 or len(optimizers) == 1
            out.append(self.root(own, pp, f"{rank} buffer") if here else None)
        return out[0] if len(out) == 1 else out

    def _kinds(self, dtype: DType) -> tuple[object, object]:
        """The types of weights and gradients; gradients of bf16 are fp32, if not said otherwise."""
        args = self.resume.args
        stated = args.get("accumulate_allreduce_grads_in_fp32")
        wide = stated if isinstance(stated, bool) else dtype is not DType.F16
        if args.get("grad_reduce_in_bf16") is True:
            wide = False
        return torch_dtype(dtype), torch_dtype(DType.F32 if wide else dtype)

    def _buffer(
        self, tensors: Sequence[LaidTensor], bucketed: bool, label: str
    ) -> Mapping[str, object]:
        shared = (EMBEDDING, OUTPUT) if self.tied else ()
        geometry = lay_buffer(
            [_Member(tensor) for tensor in tensors],
            self.options.bucket_size if bucketed else None,
            self.options.dp,
            shared,
        )
        for tensor in tensors:
            check_states(tensor.whole, list(self.inventory.own_states(tensor.whole)))
        flats = {
            key: self._flat(geometry.placed, geometry.numel, key, tensors, label) for key in STATES
        }
        return {**flats, "numel_unpadded": geometry.numel}

    def _flat(
        self,
        placed: Sequence[Placed[_Member]],
        numel: int,
        key: str,
        tensors: Sequence[LaidTensor],
        label: str,
    ) -> NewTensor:
        state = self._state(key, tensors)
        segments = tuple(
            (atom, piece.shift(place.start))
            for place in placed
            for atom, piece in place.parameter.tensor.segments
        )
        return self.output.tensor(ArraySpec(f"{key} of {label}", state, DType.F32, numel, segments))

    def _state(self, key: str, tensors: Sequence[LaidTensor]) -> str:
        """The source's name of a state."""
        if key != "param":
            return key
        if all(t.whole in self.inventory.remainders for t in tensors) and (
            self.inventory.keeps_remainders(self.resume.args)
        ):
            for tensor in tensors:
                self.inventory.fold(tensor.whole, "master", LOWER_HALVES)
            return REMAINDER
        found = {self.inventory.master(tensor.whole): tensor.whole for tensor in tensors}
        if len(found) > 1:
            raise mixed_masters(found)
        return next(iter(found))


def check_states(name: str, own: Sequence[str]) -> None:
    """Refuse a parameter with other states than the distributed optimizer keeps.

    Args:  own: its states besides weights.
    Raises: ReshardError[megatron-distributed].
    """
    if set(own) != _OWN:
        raise _other_states(name, own)


def _other_states(name: str, own: Sequence[str]) -> ReshardError:
    listed = ", ".join(f"`{state}`" for state in own) or "none"
    return target_error(
        "megatron-distributed",
        f"the optimizer's states of `{name}` are not those that Megatron's distributed one keeps",
        notes=[f"they are {listed}", "the distributed one keeps `exp_avg` and `exp_avg_sq`"],
        helps=[
            "write `distributed_optimizer=0`, which keeps any states",
            "or leave the optimizer out with `--states weights`",
        ],
    )


def mixed_masters(found: Mapping[str, str]) -> ReshardError:
    """The error for one buffer of weights with and without masters, one name for each state."""
    return target_error(
        "megatron-distributed",
        "some parameters have master weights, and others of the same type have none",
        notes=[f"`{name}` has `{state}`" for state, name in found.items()],
        helps=["leave the optimizer out with `--states weights`"],
    )
