"""Experts of a run that is written: their names on a rank, their files, what other files say.

Source: DeepSpeed 0.19.8 runtime/engine.py `_save_moe_checkpoint` and `load_moe_state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.dtypes import DType
from reshard.errors import ReshardError, target_error
from reshard.formats.deepspeed.experts import FUSED, expert_of
from reshard.formats.deepspeed.groups import FlatGroup
from reshard.formats.deepspeed.inventory import Inventory
from reshard.formats.deepspeed.native_options import NativeOptions
from reshard.formats.deepspeed.resume import Resume
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec
from reshard.plan.slice import flat_range
from reshard.storage.torch_output import TorchOutput

INFO = "universal_checkpoint_info"


def _refuse(headline: str, note: str, advice: str) -> ReshardError:
    """The error for experts that DeepSpeed itself would not load."""
    return target_error("deepspeed-experts", headline, notes=[note], helps=[advice])


def _unshared(count: int, ep: int, name: str) -> ReshardError:
    return _refuse(
        f"{count} experts cannot be shared by {ep} expert-parallel ranks",
        f"DeepSpeed gives every rank as many; `{name}` is one of them",
        f"choose an `ep` that divides {count}",
    )


def refuse_several_sizes(arrangement: Arrangement) -> None:
    """Refuse a model whose layers of experts lie over several numbers of ranks.

    One size beside layers that every rank has whole is no matter.
    Raises: ReshardError[deepspeed-experts].
    """
    sizes = {axis: n for axis, n in arrangement.mesh.items() if axis.startswith("ep") and n > 1}
    if len(sizes) > 1:
        raise _refuse(
            "layers of experts have several expert-parallel sizes, and a target has one",
            f"the source has {', '.join(f'{a}={n}' for a, n in sizes.items())}",
            "convert to `universal`, which has every expert by its own number",
        )


def expert_axis(arrangement: Arrangement, name: str) -> str | None:
    """The axis that numbers experts in a tensor's name, where it is cut over ep."""
    bound = arrangement.bound[name]
    return next((a for a in bound.indices if a in bound.cuts and "ep" in bound.cuts[a].over), None)


@dataclass(frozen=True, slots=True)
class NamedTensors:
    """A name as a rank of the target says it, and the whole tensors that it means there.

    Args:  name: of the parameter.  names: of whole tensors, one for each expert-parallel rank; one
           in all for what is not numbered locally.
    """

    name: str
    names: tuple[str, ...]

    def spec(self, wholes: Sequence[Whole], dtype: DType, label: str) -> ArraySpec:
        """The tensors of all ranks one behind the other, joined along the first dimension."""
        first = wholes[0]
        numel = prod(first.shape)
        segments = tuple(
            (key, piece.shift(rank * numel))
            for rank, whole in enumerate(wholes)
            for key, piece in whole.segments
        )
        shape = first.shape
        if len(wholes) > 1:
            shape = (len(wholes) * (shape[0] if shape else 1), *shape[1:])
        return ArraySpec(label, first.state, dtype, len(wholes) * numel, segments, shape)

    def keys(self, shape: tuple[int, ...]) -> dict[str, object] | None:
        """What makes the loader give each rank its own tensor; None for one tensor in all.

        The loader cuts a tensor of experts along its first dimension into one block per rank.

        Args:  shape: of one rank's tensor.
        """
        if len(self.names) == 1:
            return None
        rows = shape[0] if shape else 1
        return {"is_expert_param": True, "ep_num_experts": len(self.names) * rows}


def local_names(
    arrangement: Arrangement, names: Iterable[str], ep_size: int
) -> Iterator[NamedTensors]:
    """The names that ranks of the target use, in the order of the source.

    Raises: ReshardError[deepspeed-experts].
    """
    out: dict[str, dict[int, str]] = {}
    for name in names:
        axis = expert_axis(arrangement, name)
        if axis is None:
            out[name] = {0: name}
            continue
        bound = arrangement.bound[name]
        count = bound.cuts[axis].size
        if count % ep_size:
            raise _unshared(count, ep_size, name)
        rank, index = divmod(bound.indices[axis], count // ep_size)
        pattern = arrangement.layout.rules[bound.rule].pattern
        local = pattern.fill({**bound.indices, axis: index}, bound.captures)
        out.setdefault(local, {})[rank] = name
    for local, ranks in out.items():
        yield NamedTensors(local, tuple(ranks[rank] for rank in sorted(ranks)))


class Experts:
    """Which tensors are experts, and in which layer."""

    def __init__(
        self, arrangement: Arrangement, inventory: Inventory, resume: Resume, options: NativeOptions
    ) -> None:
        self._inventory = inventory
        self._layers = resume.fused
        self._info = resume.client.get(INFO)
        self._options = options
        self._fused = {name for layer in resume.fused for name in layer.names}
        layers = {module: index for index, module in enumerate(resume.expert_layers)}
        self._numbered = {
            name: (layers[module], place[1])
            for name in arrangement.bound
            if name not in self._fused
            and (place := expert_of(name)) is not None
            and (module := place[0].partition(".deepspeed_moe")[0]) in layers
        }
        self._check(arrangement, resume.ep or arrangement.mesh.get("ep", 1))

    def owns(self, name: str) -> bool:
        """Whether a tensor lies elsewhere than in the `module` of model files."""
        return name in self._numbered or name in self._fused

    def files(
        self, held: Sequence[Mapping[str, LaidTensor]], output: TorchOutput
    ) -> Iterator[tuple[int, int, dict[str, object]]]:
        """Layer, expert, and content of every expert file of a model-parallel rank.

        Args:  held: by expert-parallel rank, its tensors by the name of the whole one.
        """
        if self._options.zero == 3:
            for name in self._fused:
                self._inventory.derive_weights(name)
            return
        out: dict[tuple[int, int], dict[str, object]] = {}
        for ep, tensors_of_rank in enumerate(held):
            for name, tensor in tensors_of_rank.items():
                if name in self._numbered:
                    (spec,) = self._pieces(tensor, (name,), tensor.shape)
                    out.setdefault(self._numbered[name], {})[name] = output.tensor(spec)
            for layer in self._layers:
                assert layer.number is not None
                experts = layer.experts[ep]
                for name in (name for name in layer.names if name in tensors_of_rank):
                    keys = [f"{name}.{expert}" for expert in experts]
                    specs = self._pieces(
                        tensors_of_rank[name], keys, tensors_of_rank[name].shape[1:]
                    )
                    for expert, spec in zip(experts, specs, strict=True):
                        place = out.setdefault((layer.number, expert), {})
                        place[spec.label] = output.tensor(spec)
        for (number, expert), tensors in sorted(out.items()):
            yield number, expert, tensors

    def _pieces(
        self, tensor: LaidTensor, keys: Sequence[str], shape: tuple[int, ...]
    ) -> list[ArraySpec]:
        """A tensor cut along its first dimension into as many tensors as there are keys."""
        stored, computed = self._options.stored, self._options.dtype
        state, dtype = self._inventory.weights(tensor.whole, stored, computed)
        self._inventory.make_weights(tensor.whole)
        numel = prod(shape)
        parts = [flat_range(tensor.segments, i * numel, numel) for i in range(len(keys))]
        return [
            ArraySpec(key, state, dtype, numel, part, shape)
            for key, part in zip(keys, parts, strict=True)
        ]

    def described(self, dp_rank: int) -> dict[str, object]:
        """What a model file says about AutoEP's layers, for the rank that writes it."""
        if not self._fused:
            return {}
        options = self._options
        ep, is_zero3 = options.ep_rank(dp_rank), options.zero == 3
        layers = [
            {
                **layer.description,
                "num_local_experts": len(experts),
                "checkpoint_format": "zero3_partitioned" if is_zero3 else "per_expert_files",
                "checkpoint_format_version": 1 if is_zero3 else None,
                "ep_rank": ep,
                "expert_data_parallel_rank": options.sharing[ep].index(dp_rank),
                "expert_data_parallel_world_size": options.dp // options.ep,
                "global_expert_start": experts[0] if experts else 0,
                "global_expert_end": experts[-1] + 1 if experts else 0,
            }
            for layer in self._layers
            for experts in (layer.experts[ep],)
        ]
        out: dict[str, object] = {FUSED[0]: layers}
        if isinstance(self._info, dict) and FUSED[0] in self._info:
            out[INFO] = {**self._info, FUSED[0]: layers}
        return out

    def partition_groups(self, groups: Sequence[FlatGroup], dp_rank: int) -> dict[str, object]:
        """What an optimizer file of stage 3 says about who shares each sub-group.

        Source: DeepSpeed 0.19.8 runtime/zero/stage3.py `_zero3_partition_group_metadata`.
        """
        if not self._fused:
            return {}
        out = []
        for number, group in enumerate(groups):
            is_expert = next(iter(group.shapes)) in self._fused
            out.append(
                {
                    "sub_group": number,
                    "partition_count": len(group.members),
                    "partition_rank": group.partition(dp_rank),
                    "partition_ranks": list(group.members),
                    "families": ["autoep_expert" if is_expert else "replicated"],
                    "group_names": [f"ep_size_{self._options.ep}" if is_expert else "replicated"],
                }
            )
        return {"ds_zero_partition_groups": out}

    def _check(self, arrangement: Arrangement, source: int) -> None:
        """Refuse what DeepSpeed itself would not load.

        Args:  source: expert-parallel ranks there.
        """
        ep = self._options.ep
        if self._fused and ep != source:
            raise _refuse(
                f"experts of AutoEP cannot go from {source} expert-parallel ranks to {ep}",
                "the native files say which rank has which expert, and how they are packed",
                "convert to `deepspeed-universal`, which loads at any number of ranks",
            )
        for name in self._numbered:
            if self._options.zero == 3:
                raise _refuse(
                    "DeepSpeed has no stage 3 for experts of `deepspeed.moe`",
                    f"`{name}` is one of them",
                    "choose `zero=1` or `zero=2`",
                )
            axis = expert_axis(arrangement, name)
            if axis is None and ep > 1:
                raise _refuse(
                    f"experts that every rank has cannot be shared by {ep} ranks",
                    f"`{name}` is one of them; the source does not cut its layer",
                    "choose `ep=1`, or convert to `universal`",
                )
            count = ep if axis is None else arrangement.bound[name].cuts[axis].size
            if count % ep:
                raise _unshared(count, ep, name)
