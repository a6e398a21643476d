"""Writes `torch_dist`: whole tensors by key, which a run of any layout loads.

Source: megatron/core/dist_checkpointing/strategies/torch.py; megatron/core/optimizer/optimizer.py
and distrib_optimizer.py `sharded_param_state_fully_reshardable`; Megatron-LM,
megatron/training/checkpointing.py (core 0.16.1). docs/formats/megatron-writing.md says what each
file holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from math import prod

from reshard.dtypes import DType
from reshard.formats.megatron.stacks import LAYER
from reshard.formats.megatron.write_arguments import namespace
from reshard.formats.megatron.write_dist_optimizer import DistOptimizer
from reshard.formats.megatron.write_groups import GroupBuilder
from reshard.formats.megatron.write_inventory import Inventory, take_inventory
from reshard.formats.megatron.write_options import DIST, WriteOptions, write_options
from reshard.formats.megatron.write_resume import Resume, resume_of
from reshard.formats.megatron.write_scheduler import scheduler
from reshard.formats.megatron.write_warnings import dist_warnings, remainder_warnings
from reshard.formats.steps import TRACKER
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.output import FileBytes, Output, Written
from reshard.plan.plan import ArraySpec
from reshard.plan.target import Target
from reshard.storage.dcp_writer import DcpWriter, chunks_of, data_file
from reshard.storage.torch_output import TorchOutput

MAX_FILE_NBYTES = 5_000_000_000
_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_STACKED = re.compile(r"(?:^|\.)layers\.(?!\d)")
_EXPERTS = ".experts.experts."


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  arrangement: in the names of a layout `megatron_dist`.  target: see `write_options.DIST`.
    Raises: ReshardError[unknown-option | bad-option | numbers-disagree | megatron-weights |
            megatron-steps | megatron-groups | megatron-distributed].
    """
    output = TorchOutput()
    inventory = take_inventory(arrangement)
    resume = resume_of(arrangement.catalog, output.constant)
    options = write_options(target, DIST, inventory, resume)
    run = _Run(arrangement, inventory, resume, options, output)
    run.write()
    folder = options.folder
    last = (
        run.writer.metadata(),
        FileBytes(f"{folder}/metadata.json", 0, json.dumps(_BACKEND).encode()),
        FileBytes(TRACKER, 0, options.tracker),
    )

    def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
        return (*output.finish(written), *last)

    return Output(
        tuple(output.placed),
        output.files,
        tuple(output.head),
        finish,
        (
            *run.builder.warnings,
            *dist_warnings(resume, options, run.has_optimizer, run.has_rng),
            *remainder_warnings(resume, run.has_optimizer, run.has_remainders),
        ),
        inventory.dropped(),
        inventory.folded_tensors(),
        beside=f"{options.folder}/",
    )


class _Run:
    """The files of one iteration."""

    def __init__(
        self,
        arrangement: Arrangement,
        inventory: Inventory,
        resume: Resume,
        options: WriteOptions,
        output: TorchOutput,
    ) -> None:
        self._arrangement = arrangement
        self._inventory = inventory
        self._resume = resume
        self._options = options
        self._output = output
        self.writer = DcpWriter(f"{options.folder}/", output)
        self._file = 0
        self.has_optimizer = inventory.is_trained and bool(resume.groups)
        if not self.has_optimizer:
            inventory.lose_states()
        self.has_remainders = (
            self.has_optimizer and options.distributed and inventory.keeps_remainders(resume.args)
        )
        self.builder = GroupBuilder(resume.groups, options.ep > 1)
        places = [(tp, pp, 0) for pp in range(options.pp) for tp in range(options.tp)]
        same = resume.rng_mesh[:2] == (options.tp, options.pp)
        self._rng = places if same and all(place in resume.rng for place in places) else []
        self.has_rng = bool(self._rng)

    def write(self) -> None:
        """Plan every file."""
        optimizer = DistOptimizer(
            self._inventory, self._resume, self._options, self._output, self.builder
        )
        root: dict[str, object] = {
            "args": self._args(),
            "checkpoint_version": 3.0,
            "iteration": self._options.iteration or 0,
        }
        if self.has_optimizer:
            root["optimizer"] = optimizer.common()
        if self.has_optimizer or self._resume.scheduler is not None:
            root["opt_param_scheduler"] = scheduler(self._resume, self._options)
        root.update(self._resume.other)
        root.setdefault("num_floating_point_operations_so_far", 0)
        root["content_metadata"] = self._content()
        self._output.add(f"{self._options.folder}/common.pt", root)
        for name, kinds in self._inventory.states.items():
            state, dtype = self._inventory.weights(name)
            self._tensor(name, kinds[state], dtype)
        if self.has_optimizer:
            for key, whole, dtype in optimizer.tensors():
                self._tensor(key, whole, dtype)
        for key, value in self._objects():
            self.writer.add_object(key, value, self._data_file())

    def _tensor(self, key: str, whole: Whole, dtype: DType) -> None:
        spec = ArraySpec(key, whole.state, dtype, prod(whole.shape), whole.segments, whole.shape)
        self.writer.add_tensor(key, dtype, whole.shape, chunks_of(spec, self._data_file()))

    def _data_file(self) -> str:
        """The file that is written to; another one, once it is large."""
        if self.writer.nbytes(data_file(0, self._file)) >= MAX_FILE_NBYTES:
            self._file += 1
        return data_file(0, self._file)

    def _objects(self) -> Iterator[tuple[str, object]]:
        """Objects by key: what modules keep besides tensors, random numbers, what the source has
        that belongs to no rank.
        """
        options, resume = self._options, self._resume
        for key in self._extra_states():
            yield key, resume.extra_states.get(key, [None])
        for tp, pp, ep in self._rng:
            key = f"rng_state/shard_{pp}.{tp}_{options.pp}.{options.tp}"
            yield key, [resume.rng[tp, pp, ep]]
        yield from resume.objects.items()

    def _extra_states(self) -> Iterator[str]:
        """Keys of the extra states that modules of any implementation ask for.

        Loaders refuse a checkpoint that lacks one and do not mind one too many.
        """
        seen: set[str] = set()
        for name, kinds in self._inventory.states.items():
            shape = next(iter(kinds.values())).shape
            module, _, _ = name.rpartition(".")
            grid = shape[:1] if _STACKED.search(name) else ()
            if _EXPERTS in name:
                grid = shape[: len(grid) + 1]
            for owner in _stateful(module):
                if owner not in seen:
                    seen.add(owner)
                    yield from (f"{owner}._extra_state/shard_{place}" for place in _places(grid))

    def _content(self) -> dict[str, object]:
        content: dict[str, object] = {
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
        }
        if any(LAYER.search(name) for name in self._inventory.states):
            content["non_homogeneous_layers"] = True
        if self.has_optimizer and self._options.distributed:
            content["distrib_optim_sharding_type"] = "fully_reshardable"
        return content

    def _args(self) -> object:
        counts: dict[DType, int] = {}
        for name, kinds in self._inventory.states.items():
            dtype = self._inventory.weights(name)[1]
            counts[dtype] = counts.get(dtype, 0) + prod(next(iter(kinds.values())).shape)
        return namespace(
            self._arrangement,
            self._resume,
            self._options,
            form="torch_dist",
            stages=(),
            padded_vocabulary=None,
            dtype=max(counts, key=lambda dtype: counts[dtype]),
            has_optimizer=self.has_optimizer,
            has_rng=self.has_rng,
            has_remainders=self.has_remainders,
        )


def _stateful(module: str) -> Iterator[str]:
    """The modules with extra states that a tensor of a module tells of."""
    parent, _, last = module.rpartition(".")
    if last.startswith("linear_") or last.endswith(("layernorm", "norm")):
        yield module
    if last == "linear_proj":
        yield f"{parent}.core_attention"


def _places(grid: Sequence[int]) -> Iterator[str]:
    """`0.3_2.4` for every cell of a grid; `0_1` without one."""
    sizes = tuple(grid) or (1,)
    shown = ".".join(map(str, sizes))
    for index in range(prod(sizes)):
        place = []
        for size in reversed(sizes):
            index, rest = divmod(index, size)
            place.append(str(rest))
        yield f"{'.'.join(reversed(place))}_{shown}"
