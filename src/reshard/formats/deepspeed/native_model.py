"""Model files of a run: weights, names, shapes, and the state of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.algebra.partition import Each, spread
from reshard.dtypes import DType
from reshard.formats.deepspeed.groups import FlatGroup
from reshard.formats.deepspeed.inventory import Inventory
from reshard.formats.deepspeed.native_optimizer import placed
from reshard.formats.deepspeed.native_options import NativeOptions
from reshard.formats.deepspeed.resume import Resume, with_own
from reshard.plan.arrangement import Arrangement
from reshard.plan.lay_out import LaidTensor
from reshard.plan.plan import ArraySpec
from reshard.storage.inert import Size
from reshard.storage.torch_output import TorchOutput
from reshard.storage.torch_writer import NewTensor


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What all model files have in common."""

    arrangement: Arrangement
    inventory: Inventory
    resume: Resume
    options: NativeOptions
    output: TorchOutput

    def root(
        self,
        held: Mapping[str, LaidTensor],
        groups: Sequence[FlatGroup],
        dp_rank: int,
        own: Mapping[str, object],
    ) -> dict[str, object]:
        """The whole tree of one file.

        Args:  held: tensors of the rank, by name of the whole one; without experts of other files.
               own: entries that this file alone has.
        """
        options = self.options
        names = [whole.name for whole in self.inventory.unmanaged if whole.name in held]
        buffers = set(self.arrangement.catalog.buffers)
        frozen = [held[name] for name in names if name not in buffers]
        aliases = {
            alias: held[name].name
            for alias, name in (self.arrangement.catalog.aliases or {}).items()
            if name in held
        }
        root: dict[str, object] = {
            "module": None
            if self.resume.pipeline is not None
            else self.resume.nested(
                {**self._module(held, aliases), **self.resume.module_entries()}
            ),
            "buffer_names": [held[name].name for name in names if name in buffers],
            "optimizer": None,
            "param_shapes": [
                {name: Size(shape) for name, shape in group.shapes.items()} for group in groups
            ],
            "frozen_param_shapes": None
            if options.zero == 1
            else {tensor.name: Size(tensor.shape) for tensor in frozen},
            "shared_params": aliases,
            "frozen_param_fragments": None
            if options.zero == 1
            else {tensor.name: self._frozen(tensor, dp_rank) for tensor in frozen},
            "lr_scheduler": self.resume.lr_scheduler,
            **self.resume.model,
            **self.resume.counters,
            "dp_world_size": options.dp,
            "mp_world_size": options.pp * options.tp,
            "checkpoint_parallel_dimensions": {"pp_degree": options.pp, "tp_degree": options.tp},
            "ds_config": options.config(self.resume),
            "ds_version": self.resume.version,
            **self.resume.client,
        }
        return with_own(root, own)

    def weights(self, tensor: LaidTensor) -> NewTensor:
        """A tensor as the model computes with it."""
        state, dtype = self._source(tensor.whole)
        spec = ArraySpec(
            tensor.name, state, dtype, prod(tensor.shape), tensor.segments, tensor.shape
        )
        return self.output.tensor(spec)

    def _source(self, name: str) -> tuple[str, DType]:
        return self.inventory.weights(name, self.options.stored, self.options.dtype)

    def _module(
        self, held: Mapping[str, LaidTensor], aliases: Mapping[str, str]
    ) -> dict[str, object]:
        trained = set(self.inventory.trained)
        buffers = set(self.arrangement.catalog.buffers)
        out: dict[str, object] = {}
        for name, tensor in held.items():
            if self.options.zero == 3 and name not in buffers:
                if name in trained:
                    self.inventory.derive_weights(name)
                out[tensor.name] = self._placeholder(name)
            else:
                out[tensor.name] = self.weights(tensor)
        for alias, name in aliases.items():
            out[alias] = out[name]
        for name in self.resume.unstored if self.options.zero == 3 else ():
            out.setdefault(name, self._empty(name, self.options.dtype))
        return out

    def _placeholder(self, name: str) -> NewTensor:
        return self._empty(name, self._source(name)[1])

    def _empty(self, name: str, dtype: DType) -> NewTensor:
        return self.output.tensor(ArraySpec(f"{name} elsewhere", "param", dtype, 0, (), (0,)))

    def _frozen(self, tensor: LaidTensor, dp_rank: int) -> NewTensor:
        """All of a frozen parameter, or at stage 3 a rank's equal share, padded with zeros."""
        if self.options.zero < 3:
            return self.weights(tensor)
        state, dtype = self._source(tensor.whole)
        cut = spread(Each(), [tensor.shape], self.options.dp)
        segments = tuple(
            item for share in cut.by_rank[dp_rank] for item in placed(tensor.segments, share)
        )
        label = f"{tensor.name} for dp={dp_rank}"
        return self.output.tensor(ArraySpec(label, state, dtype, cut.lengths[dp_rank], segments))
