"""Writes `torch_dist`: whole tensors by key, which a run of any layout loads.

Source: megatron/core/dist_checkpointing/strategies/torch.py; megatron/core/optimizer/optimizer.py
and distrib_optimizer.py `sharded_param_state_fully_reshardable`; Megatron-LM,
megatron/training/checkpointing.py (core 0.16.1). docs/formats/megatron-writing.md says what each
file holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

from reshard.dtypes import DType
from reshard.formats.megatron.names import LAYER, stacked_axes
from reshard.formats.megatron.write_job import Job, namespace
from reshard.formats.megatron.write_optimizer import common_optimizers, dist_states
from reshard.formats.megatron.write_run import DIST
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.output import FileBytes, Output
from reshard.plan.plan import ArraySpec
from reshard.plan.target import Target
from reshard.run.states import PARAM
from reshard.storage.dcp_writer import DcpWriter, chunks_of, data_file

MAX_FILE_NBYTES = 5_000_000_000
_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  arrangement: in the names of a layout `megatron_dist`.  target: see `write_run.DIST`.
    Raises: ReshardError[unknown-option | bad-option | numbers-disagree | megatron-weights |
            megatron-steps | megatron-groups | megatron-distributed].
    """
    run = _Run(Job(arrangement, target, DIST))
    run.write()
    backend = json.dumps(_BACKEND).encode()
    metadata = FileBytes(f"{run.job.options.folder}/metadata.json", 0, backend)
    return run.job.planned(run.writer.metadata(), metadata)


class _Run:
    """The files of one iteration."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.writer = DcpWriter(f"{job.options.folder}/", job.output)
        self._file = 0
        options, resume = job.options, job.resume
        places = [(tp, pp, 0) for pp in range(options.pp) for tp in range(options.tp)]
        same = resume.mesh[:2] == (options.tp, options.pp)
        self._rng = places if same and resume.rng.keys() >= {*places} else []
        job.has_rng = bool(self._rng)

    def write(self) -> None:
        """Plan every file."""
        job = self.job
        optimizer = common_optimizers(job) if job.has_optimizer else None
        root = {**job.tree(namespace(job), {}, optimizer), "content_metadata": self._content()}
        job.output.add(f"{job.options.folder}/common.pt", root)
        for name, kinds in job.inventory.states.items():
            dtype = job.inventory.dtype(name)
            self._tensor(name, kinds[PARAM], dtype)
        for key, whole, dtype in dist_states(job) if job.has_optimizer else ():
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
        options, resume = self.job.options, self.job.resume
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
        owners: dict[str, tuple[int, ...]] = {}
        for name, kinds in self.job.inventory.states.items():
            module = name.rpartition(".")[0]
            parent, _, last = module.rpartition(".")
            sizes = next(iter(kinds.values())).shape[: stacked_axes(name)] or (1,)
            if last.startswith("linear_") or last.endswith("norm"):
                owners.setdefault(module, sizes)
            if last == "linear_proj":
                owners.setdefault(f"{parent}.core_attention", sizes)
        for owner, sizes in owners.items():
            for place in product(*map(range, sizes)):
                yield f"{owner}._extra_state/shard_{_dotted(place)}_{_dotted(sizes)}"

    def _content(self) -> dict[str, object]:
        content: dict[str, object] = {
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
        }
        if any(LAYER.search(name) for name in self.job.inventory.states):
            content["non_homogeneous_layers"] = True
        if self.job.has_optimizer and self.job.options.distributed:
            content["distrib_optim_sharding_type"] = "fully_reshardable"
        return content


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))
