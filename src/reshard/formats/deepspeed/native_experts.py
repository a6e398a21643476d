"""Experts of a run: files of their own, and what the other files say about them.

Source: DeepSpeed 0.19.8 runtime/engine.py `_save_moe_checkpoint` and `load_moe_state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from reshard.algebra.flat import cut
from reshard.errors import target_error
from reshard.formats.deepspeed.autoep_layers import described_layers, expert_ranks
from reshard.formats.deepspeed.groups import FlatGroup
from reshard.formats.deepspeed.inventory import Inventory
from reshard.formats.deepspeed.local_names import expert_axis
from reshard.formats.deepspeed.native_options import NativeOptions
from reshard.formats.deepspeed.resume import Resume
from reshard.plan.arrangement import Arrangement
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec
from reshard.storage.torch_output import TorchOutput

NATIVE = "deepspeed_experts"


class Experts:
    """Which tensors are experts, and in which layer."""

    def __init__(
        self, arrangement: Arrangement, inventory: Inventory, resume: Resume, options: NativeOptions
    ) -> None:
        self._arrangement = arrangement
        self._inventory = inventory
        self._resume = resume
        self._options = options
        self._layers = {module: index for index, module in enumerate(resume.expert_layers)}
        self._described = described_layers(resume.model)
        self._fused = {name for layer in self._described for name in _fused_names(layer)}
        self._numbered = {
            name: layer
            for name in arrangement.bound
            if name not in self._fused and (layer := self._layer(name)) is not None
        }
        self._check()

    @property
    def any_described(self) -> bool:
        """Whether there are layers of AutoEP, about which every rank says something else."""
        return bool(self._described)

    def owns(self, name: str) -> bool:
        """Whether a tensor lies elsewhere than in the `module` of model files."""
        return name in self._numbered or name in self._fused

    def files(
        self, held: Sequence[Mapping[str, LaidTensor]], output: TorchOutput
    ) -> Iterator[tuple[str, dict[str, object]]]:
        """The start of the name and the content of every expert file of a model-parallel rank.

        Args:  held: by expert-parallel rank, its tensors by the name of the whole one.
        """
        found: dict[tuple[int, int], dict[str, object]] = {}
        for own in held:
            for name, tensor in own.items():
                layer = self._numbered.get(name)
                if layer is not None:
                    (spec,) = self._pieces(tensor, (name,), tensor.shape)
                    found.setdefault((layer, _number(name)), {})[name] = output.tensor(spec)
        if self._options.zero == 3:
            for name in self._fused:
                self._inventory.derive_weights(name)
            return
        for ep, own in enumerate(held):
            for described in self._described:
                layer, experts = _layer_number(described), _placed(described, ep)
                for name in _fused_names(described):
                    if name not in own:
                        continue
                    keys = tuple(f"{name}.{expert}" for expert in experts)
                    specs = self._pieces(own[name], keys, own[name].shape[1:])
                    for expert, spec in zip(experts, specs, strict=True):
                        found.setdefault((layer, expert), {})[spec.label] = output.tensor(spec)
        for (layer, expert), tensors in sorted(found.items()):
            yield f"layer_{layer}_expert_{expert}", tensors

    def _pieces(
        self, tensor: LaidTensor, keys: Sequence[str], shape: tuple[int, ...]
    ) -> list[ArraySpec]:
        """A tensor cut along its first dimension into as many tensors as there are keys."""
        state, dtype = self._inventory.weights(
            tensor.whole, self._options.stored, self._options.dtype
        )
        numel = prod(shape)
        out = []
        for index, key in enumerate(keys):
            start = index * numel
            segments = tuple(
                (atom, part.shift(-start))
                for atom, piece in tensor.segments
                for part in cut(piece, start, start + numel)
            )
            out.append(ArraySpec(key, state, dtype, numel, segments, shape))
        return out

    def described(self, dp_rank: int) -> dict[str, object]:
        """What a model file says about AutoEP's layers, for the rank that writes it."""
        if not self._described:
            return {}
        options = self._options
        ep = options.ep_rank(dp_rank)
        own = []
        for layer in self._described:
            experts = _placed(layer, ep)
            own.append(
                {
                    **layer,
                    "num_local_experts": len(experts),
                    "checkpoint_format": "zero3_partitioned"
                    if options.zero == 3
                    else "per_expert_files",
                    "checkpoint_format_version": 1 if options.zero == 3 else None,
                    "ep_rank": ep,
                    "expert_data_parallel_rank": options.expert_members(ep).index(dp_rank),
                    "expert_data_parallel_world_size": options.dp // options.ep,
                    "global_expert_start": experts[0] if experts else 0,
                    "global_expert_end": experts[-1] + 1 if experts else 0,
                }
            )
        out: dict[str, object] = {"ds_autoep_layers": own}
        info = self._resume.client.get("universal_checkpoint_info")
        if isinstance(info, dict) and "ds_autoep_layers" in info:
            out["universal_checkpoint_info"] = {**info, "ds_autoep_layers": own}
        return out

    def partition_groups(self, groups: Sequence[FlatGroup], dp_rank: int) -> dict[str, object]:
        """What an optimizer file of stage 3 says about who shares each sub-group.

        Source: DeepSpeed 0.19.8 runtime/zero/stage3.py `_zero3_partition_group_metadata`.
        """
        if not self._fused:
            return {}
        out = []
        for number, group in enumerate(groups):
            expert = next(iter(group.shapes)) in self._fused
            family = "autoep_expert" if expert else "replicated"
            name = f"ep_size_{self._options.ep}" if expert else "replicated"
            out.append(
                {
                    "sub_group": number,
                    "partition_count": len(group.members),
                    "partition_rank": group.partition(dp_rank),
                    "partition_ranks": list(group.members),
                    "families": [family],
                    "group_names": [name],
                }
            )
        return {"ds_zero_partition_groups": out}

    def _layer(self, name: str) -> int | None:
        parts = name.split(".")
        if NATIVE not in parts or "deepspeed_moe" not in parts:
            return None
        return self._layers.get(".".join(parts[: parts.index("deepspeed_moe")]))

    def _check(self) -> None:
        """Refuse what DeepSpeed itself would not load.

        Raises: ReshardError[deepspeed-experts].
        """
        options = self._options
        source = expert_ranks(self._resume.model) or self._arrangement.mesh.get("ep", 1)
        if self._fused and options.ep != source:
            raise target_error(
                "deepspeed-experts",
                f"experts of AutoEP cannot go from {source} expert-parallel ranks to {options.ep}",
                notes=["the native files say which rank has which expert, and how they are packed"],
                helps=["convert to `deepspeed-universal`, which loads at any number of ranks"],
            )
        if self._numbered and options.zero == 3:
            raise target_error(
                "deepspeed-experts",
                "DeepSpeed has no stage 3 for experts of `deepspeed.moe`",
                notes=[f"`{next(iter(self._numbered))}` is one of them"],
                helps=["choose `zero=1` or `zero=2`"],
            )
        for name in self._numbered:
            axis = expert_axis(self._arrangement, name)
            count = 1 if axis is None else self._arrangement.bound[name].cuts[axis].size
            if count % options.ep:
                raise target_error(
                    "deepspeed-experts",
                    f"{count} experts cannot be shared by {options.ep} expert-parallel ranks",
                    notes=[f"DeepSpeed gives every rank as many; `{name}` is one of them"],
                    helps=[f"choose an `ep` that divides {count}"],
                )


def _number(name: str) -> int:
    parts = name.split(".")
    return int(parts[parts.index(NATIVE) + 1])


def _layer_number(layer: Mapping[str, object]) -> int:
    number = layer["moe_layer_id"]
    assert isinstance(number, int)
    return number


def _fused_names(layer: Mapping[str, object]) -> tuple[str, ...]:
    prefix = layer.get("expert_key_prefix")
    return tuple(f"{prefix}.{part}" for part in ("w1", "w2", "w3"))


def _placed(layer: Mapping[str, object], ep_rank: int) -> list[int]:
    """The experts of one rank."""
    placement = layer.get("expert_placement")
    if isinstance(placement, dict):
        for item in placement.get("ranks", ()):
            if item.get("rank") == ep_rank:
                return list(item["experts"])
    own = layer["num_local_experts"]
    assert isinstance(own, int)
    return list(range(ep_rank * own, (ep_rank + 1) * own))
