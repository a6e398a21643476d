"""Writes the folder of a run that nanotron resumes from, at any tensor, pipeline, and data size.

Source: nanotron/serialize/{main,weights,optimizer,metadata}.py (2411b02).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from reshard.errors import target_error
from reshard.formats.nanotron import LATEST, METADATA, MODEL_CONFIG, NAME, OPTIMIZER_CONFIG
from reshard.formats.nanotron.shards import VERSION, OutShard, out_shard
from reshard.formats.nanotron.stages import HEAD, block_of, blocks, stages
from reshard.formats.nanotron.write_optimizer import GroupOfStage, OptimizerFiles, Parameter
from reshard.formats.nanotron.write_training import (
    metadata_of,
    model_config,
    scheduler,
    training_warnings,
)
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.lay_out import LaidTensor, lay_out
from reshard.plan.output import FileBytes, Output, PlacedSpec, Written
from reshard.plan.plan import ArraySpec
from reshard.plan.rename import atom_sizes
from reshard.plan.target import Target
from reshard.storage.safetensors import layout_header
from reshard.storage.torch_output import TorchOutput

OPTIONS = ("tp", "pp", "dp", "zero")


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  arrangement: in the names of a layout `nanotron`.
           target: `tp`, `pp`, `dp`, and `zero` (1 where states are shared among data-parallel
           ranks, as they are by default if there are several; else 0).
    Raises: ReshardError[unknown-option | bad-option | uneven-target | target-stages |
            nanotron-states].
    """
    target.reject_unknown(OPTIONS)
    run = _Run(arrangement, target)
    run.write()
    latest = FileBytes(LATEST, 0, run.tag.encode())

    def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
        return (*run.output.finish(written), latest)

    return Output(
        tuple(run.output.placed),
        run.output.files,
        tuple(run.output.head),
        finish,
        training_warnings(arrangement, has_states=run.has_states),
        tuple(run.dropped()),
        beside=f"{run.tag}/",
    )


class _Run:
    """The files of all ranks."""

    def __init__(self, arrangement: Arrangement, target: Target) -> None:
        self.output = TorchOutput()
        self._arrangement = arrangement
        self._tp = target.integer("tp", 1) or 1
        self._pp = target.integer("pp", 1) or 1
        self._dp = target.integer("dp", 1) or 1
        zero = target.integer("zero", int(self._dp > 1), least=0) or 0
        if zero > 1:
            raise target_error(
                "bad-option",
                f"option `zero` of target `{NAME}` is `{zero}`, and nanotron has 0 and 1",
                helps=[f"write it as `{NAME}:zero=1`"],
            )
        self._zero = zero == 1
        iteration = arrangement.catalog.training.iteration
        self.tag = str(iteration or 0)
        self._weights = self._best_weights()
        self._parameters = self._lay_out()
        self.has_states = any(
            whole.state not in ("param", "extra", "master") for whole in arrangement.wholes
        )

    def write(self) -> None:
        """Plan every file."""
        arrangement = self._arrangement
        for item in self._parameters.values():
            for tp, shard in item.shards.items():
                self._weight(item, tp, shard)
        files = {
            METADATA: metadata_of(arrangement, self._tp, self._dp),
            MODEL_CONFIG: model_config(arrangement, self._vocab()),
        }
        states = OptimizerFiles(arrangement, self.output, self._dp if self._zero else None)
        if self.has_states:
            files[OPTIMIZER_CONFIG] = states.config(self._parameters, self._pp, self._tp, self._dp)
            for stage, groups in enumerate(states.stages(self._parameters, self._pp)):
                for tp in range(self._tp):
                    self._rank(states, stage, groups, tp)
        for name, value in files.items():
            data = json.dumps(value, indent=2).encode()
            self.output.head.append(FileBytes(f"{self.tag}/{name}", 0, data))

    def _rank(
        self, states: OptimizerFiles, stage: int, groups: Sequence[GroupOfStage], tp: int
    ) -> None:
        """The files of the ranks of a stage that have one place along tp."""
        at, of = f"pp-{stage}-of-{self._pp}", f"tp-{tp}-of-{self._tp}_exp-0-of-1.pt"
        for dp in range(self._dp) if self._zero else (None,):
            share = "" if dp is None else f"_dp-{dp}-of-{self._dp}"
            root = states.root(groups, tp, dp)
            self.output.add(f"{self.tag}/optimizer/optimizer_{at}{share}_{of}", root)
        content = scheduler(self._arrangement, self.output, [group.number for group in groups])
        if content is not None:
            # nanotron names it by `zero_stage is True`, which a number never is: without dp.
            self.output.add(f"{self.tag}/lr_scheduler/lr_scheduler_{at}_{of}", content)

    def dropped(self) -> Iterator[tuple[str, str, str]]:
        """What there is no place for."""
        for whole in self._arrangement.wholes:
            if whole.state == "extra":
                yield whole.name, whole.state, "nanotron has no place for it"
            elif whole.state == "master" and not self.has_states:
                best = self._weights.get(whole.name)
                if best is None or best.state != "master":
                    yield whole.name, whole.state, "there are no other states to resume with"

    def _best_weights(self) -> dict[str, Whole]:
        """The weight of every parameter; its master weight where there is no other."""
        out: dict[str, Whole] = {}
        for state in ("param", "master"):
            for whole in self._arrangement.wholes:
                if whole.state == state and whole.rule >= 0:
                    out.setdefault(whole.name, whole)
        return out

    def _lay_out(self) -> dict[str, Parameter]:
        arrangement = self._arrangement
        laid: dict[str, dict[int | None, LaidTensor]] = {}
        for item in lay_out(arrangement, {"tp": self._tp, "pp": 1, "dp": 1}, copied=()):
            laid.setdefault(item.whole, {})[dict(item.coord).get("tp")] = item
        order = blocks(arrangement.layout, atom_sizes(arrangement))
        stage = stages(order, self._costs(order, laid), self._pp)
        position = {block: index for index, block in enumerate(order)}
        names = sorted(laid, key=lambda n: (position[block_of(n)], arrangement.bound[n].rule))
        out = {}
        for name in names:
            bound = arrangement.bound[name]
            is_cut = any("tp" in cut.over for cut in bound.cuts.values())
            whole = self._weights[name]
            shards = {
                tp: out_shard(whole, item, tp or 0, self._tp, is_cut=is_cut)
                for tp, item in laid[name].items()
            }
            home = stage[block_of(name)]
            holders = {home}
            if HEAD in stage and position[block_of(name)] == 0 and self._is_tied(order, laid):
                holders.add(stage[HEAD])
            out[name] = Parameter(name, whole, home, frozenset(holders), is_cut, shards)
        return out

    def _is_tied(self, order: tuple[str, ...], laid: Mapping[str, object]) -> bool:
        return HEAD in order and not any(block_of(name) == HEAD for name in laid)

    def _costs(
        self, order: tuple[str, ...], laid: Mapping[str, Mapping[int | None, LaidTensor]]
    ) -> dict[str, int]:
        values = self._arrangement.values
        hidden, inner, heads = (
            _size(values, name)
            for name in ("hidden_size", "intermediate_size", "num_attention_heads")
        )
        layer = 4 * heads * (hidden // max(heads, 1)) * hidden + 3 * inner * hidden
        costs = {block: layer for block in order if block.rpartition(".")[2].isdigit()}
        first = next(name for name in laid if block_of(name) == order[0])
        rows = sum(item.shape[0] for item in laid[first].values())
        return {**costs, HEAD: rows * hidden}

    def _vocab(self) -> int:
        """Rows of the embedding, padding included."""
        first = next(iter(self._parameters.values()))
        return sum(shard.shape[0] for shard in first.shards.values())

    def _weight(self, item: Parameter, tp: int | None, shard: OutShard) -> None:
        *modules, last = item.name.split(".")
        rank = ""
        if item.is_cut:
            rank = f"_pp-rank-{item.home}-of-{self._pp}_tp-rank-{tp or 0}-of-{self._tp}"
        file = f"{self.tag}/model/{'/'.join(modules)}/model_{last}{rank}.safetensors"
        whole = item.whole
        head, at, nbytes = layout_header({"data": (whole.dtype, shard.shape)}, shard.metadata)
        self.output.head.append(FileBytes(file, 0, head))
        self.output.files[file] = nbytes
        spec = ArraySpec(
            item.name,
            whole.state,
            whole.dtype,
            (nbytes - at["data"]) // whole.dtype.itemsize,
            shard.laid.segments,
            shard.shape,
        )
        self.output.placed.append(PlacedSpec(spec, file, at["data"], digest=False))


def _size(values: Mapping[str, object], name: str) -> int:
    value = values.get(name)
    if isinstance(value, int):
        return value
    raise target_error(
        "target-stages",
        f"the model's `{name}` is not known, and nanotron balances its pipeline by it",
        helps=[f"state it: `--set {name}=...`"],
    )


__all__ = ["OPTIONS", "VERSION", "prepare"]
