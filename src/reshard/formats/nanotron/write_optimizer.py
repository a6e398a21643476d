"""The optimizer's files of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.algebra.flat import cut
from reshard.dtypes import DType
from reshard.errors import target_error
from reshard.formats.nanotron.shards import OutShard
from reshard.formats.nanotron.slices import data_ranges
from reshard.formats.nanotron.write_training import shares_groups
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.names import group_names, quantity
from reshard.plan.plan import ArraySpec
from reshard.storage.kept import Decoder
from reshard.storage.torch_output import TorchOutput

_STEP = "step"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the target.

    Args:  whole: its weight.  home: pipeline rank that saves the weight.
           holders: pipeline ranks whose optimizer has it.  is_cut: whether it is cut over tp.
           shards: by tensor-parallel rank, None where it is not cut or there is only one.
    """

    name: str
    whole: Whole
    home: int
    holders: frozenset[int]
    is_cut: bool
    shards: Mapping[int | None, OutShard]

    def shard(self, tp: int) -> OutShard:
        """What a rank holds."""
        return self.shards[tp if tp in self.shards else None]


@dataclass(frozen=True, slots=True)
class GroupOfStage:
    """A param group as a stage has it.

    Args:  number: of the source's group.  settings: its hyper-parameters.
    """

    number: int
    settings: Mapping[str, object]
    members: Sequence[Parameter]


class OptimizerFiles:
    """Makes the state dict of every rank.

    Args:  dp: data-parallel ranks among which states are shared; None for no ZeRO.
    """

    def __init__(self, arrangement: Arrangement, output: TorchOutput, dp: int | None) -> None:
        self._arrangement = arrangement
        self._output = output
        self._dp = dp
        self._states: dict[str, list[Whole]] = {}
        for whole in arrangement.wholes:
            if whole.state not in ("param", "extra"):
                self._states.setdefault(whole.name, []).append(whole)

    def config(
        self, parameters: Mapping[str, Parameter], pp: int, tp: int, dp: int
    ) -> dict[str, object]:
        """What `optimizer_config.json` says, of all stages (nanotron tells of the first alone)."""
        has_masters = any(w.state == "master" for found in self._states.values() for w in found)
        kind = "OptimizerFromGradientAccumulator" if has_masters else "NamedOptimizer"
        sizes = {"tp_size": tp, "dp_size": dp, "pp_size": pp, "expert_parallel_size": 1}
        configs: dict[str, object] = {}
        if self._dp is not None:
            kind = "ZeroDistributedOptimizer"
            shapes = {name: item.shard(0).shape for name, item in parameters.items()}
            configs = {
                "param_name_to_dp_rank_offsets": {
                    name: {
                        str(rank): [str(start), str(stop)]
                        for rank, (start, stop) in enumerate(data_ranges(prod(shape), self._dp))
                        if start < stop
                    }
                    for name, shape in shapes.items()
                },
                "orig_param_shapes": {n: [str(size) for size in s] for n, s in shapes.items()},
            }
        parallelism = {key: str(value) for key, value in sizes.items()}
        return {"type": kind, "parallelism": parallelism, "configs": configs}

    def stages(self, parameters: Mapping[str, Parameter], pp: int) -> list[list[GroupOfStage]]:
        """The param groups of every stage, in the order of its parameters.

        Raises: ReshardError[nanotron-states].
        """
        groups = self._groups(parameters)
        shared = shares_groups(self._arrangement)
        out = []
        for stage in range(pp):
            held = {
                name: item
                for name, item in parameters.items()
                if stage in item.holders and name in self._states
            }
            if shared:
                out.append(
                    [
                        GroupOfStage(number, rest, [held[name] for name in names if name in held])
                        for number, (rest, names) in enumerate(groups)
                    ]
                )
                continue
            group_of = {name: number for number, (_, names) in enumerate(groups) for name in names}
            out.append(
                [
                    GroupOfStage(group_of[name], groups[group_of[name]][0], [item])
                    for name, item in held.items()
                ]
            )
        return out

    def _groups(
        self, parameters: Mapping[str, Parameter]
    ) -> list[tuple[dict[str, object], list[str]]]:
        """Every param group of the source with its parameters, in the order of the model."""
        out: list[tuple[dict[str, object], list[str]]] = []
        grouped: set[str] = set()
        decoder = Decoder(self._output.constant)
        for group in self._arrangement.catalog.training.param_groups:
            names = {*group.members}
            grouped |= names
            settings = decoder.mapping(group.settings)
            settings.pop("param_names", None)
            out.append((settings, [name for name in parameters if name in names]))
        left = [name for name in parameters if name in self._states and name not in grouped]
        if left:
            shown = [f"`{name}`{quantity(count)} is in none" for name, count in group_names(left)]
            raise target_error(
                "nanotron-states",
                "the source does not tell the param groups of all parameters with states",
                notes=shown[:5],
                helps=["write the weights alone, with `--states weights`"],
            )
        return out

    def root(self, groups: Sequence[GroupOfStage], tp: int, dp: int | None) -> dict[str, object]:
        """The content of the file of one rank of a stage."""
        state: dict[int, dict[str, object]] = {}
        names: dict[int, str] = {}
        masters: dict[str, object] = {}
        written: list[dict[str, object]] = []
        for group in groups:
            indices = []
            for item in group.members:
                shard = item.shard(tp)
                numel = prod(shard.shape)
                start, stop = (0, numel) if dp is None else data_ranges(numel, self._dp or 1)[dp]
                if start == stop:
                    continue
                index = len(names)
                indices.append(index)
                names[index] = item.name
                values = self._values(item.name, shard, start, stop, flat=dp is not None)
                if "master" in values:
                    masters[item.name] = values.pop("master")
                state[index] = values
            written.append({**group.settings, "params": indices})
        out: dict[str, object] = {"state": state, "param_groups": written, "names": names}
        return {**out, "gradient_accumulator": masters} if masters else out

    def _values(
        self, name: str, shard: OutShard, start: int, stop: int, *, flat: bool
    ) -> dict[str, object]:
        """The states of a parameter; `step` first, as torch has it."""
        out: dict[str, object] = {}
        stored = self._states[name]
        if not any(whole.state == _STEP for whole in stored):
            raise target_error(
                "nanotron-states",
                f"the source has no `step` of `{name}`, which the optimizer resumes from",
                helps=["write the weights alone, with `--states weights`"],
            )
        for whole in sorted(stored, key=lambda item: item.state != _STEP):
            if not whole.shape and shard.shape:
                dtype = DType.F32 if whole.state == _STEP else whole.dtype
                spec = ArraySpec(name, whole.state, dtype, 1, shard.laid.numbers, ())
            else:
                pieces = tuple(
                    (key, part.shift(-start))
                    for key, piece in shard.laid.segments
                    for part in cut(piece, start, stop)
                )
                shape = (stop - start,) if flat else shard.shape
                numel = stop - start
                spec = ArraySpec(name, whole.state, whole.dtype, numel, pieces, shape)
            out[whole.state] = self._output.tensor(spec)
        return out
