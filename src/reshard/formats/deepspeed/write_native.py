"""Writes the folder that `engine.load_checkpoint` loads, for a run of any size and ZeRO stage.

Source: DeepSpeed 0.19.8 runtime/engine.py `_save_checkpoint` and `_save_zero_checkpoint`,
runtime/pipe/module.py `save_state_dict`; docs/formats/deepspeed-writing.md says what each file
holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from reshard.algebra.partition import Each, spread
from reshard.dtypes import DType
from reshard.errors import target_error
from reshard.formats.deepspeed.experts import FUSED
from reshard.formats.deepspeed.files import (
    EXPERT,
    LATEST,
    LAYER,
    LAYER_TP,
    MODEL,
    MODEL_ZERO3,
    OPTIMIZERS,
)
from reshard.formats.deepspeed.groups import FlatGroup
from reshard.formats.deepspeed.inventory import Inventory
from reshard.formats.deepspeed.native_experts import INFO, Experts, refuse_several_sizes
from reshard.formats.deepspeed.native_optimizer import OptimizerFiles, written_groups
from reshard.formats.deepspeed.native_options import (
    NativeOptions,
    check_native,
    needed_settings,
    no_master,
    rank_state,
    unstored_names,
    weights_only,
)
from reshard.formats.deepspeed.resume import Resume, with_own
from reshard.plan.arrangement import Arrangement
from reshard.plan.lay_out import ByPlace, LaidTensor, lay_out
from reshard.plan.output import Output
from reshard.plan.plan import ArraySpec
from reshard.plan.slice import in_shares
from reshard.plan.target import Target
from reshard.run.states import PARAM
from reshard.storage.inert import Size
from reshard.storage.kept import Decoder
from reshard.storage.torch_output import TorchOutput
from reshard.storage.torch_writer import NewTensor

Held = Mapping[str, LaidTensor]
"""The tensors of one coordinate, by the name of the whole one."""


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  target: see `native_options.OPTIONS`.
    Raises: ReshardError[unknown-option | bad-option | uneven-target | target-stages |
            deepspeed-experts | deepspeed-layer | deepspeed-missing-state | deepspeed-mixed-group |
            numbers-disagree], and those of `check_native`.
    """
    return _Run(arrangement, target).output()


class _Run:
    """The files of all ranks."""

    def __init__(self, arrangement: Arrangement, target: Target) -> None:
        output = TorchOutput()
        inventory = Inventory(arrangement)
        resume = Resume(arrangement, Decoder(output.constant, inventory.extra_tensor(output)))
        refuse_several_sizes(arrangement)
        options = NativeOptions(arrangement, target, inventory, resume)
        check_native(inventory, resume, options)
        self._catalog = arrangement.catalog
        self._inventory = inventory
        self._resume = resume
        self._options = options
        self._output = output
        self._experts = Experts(arrangement, inventory, resume, options)
        self._optimizers = OptimizerFiles(inventory, resume, options, output)
        self._places = ByPlace(lay_out(arrangement, options.mesh))
        self._used: set[str] = set()

    def output(self) -> Output:
        """Everything."""
        options, resume, inventory = self._options, self._resume, self._inventory
        for tp in range(options.tp):
            stages = []
            for pp in range(options.pp):
                held = [self._held({"pp": pp, "tp": tp, "ep": ep}) for ep in range(options.ep)]
                self._mp_rank(pp * options.tp + tp, held)
                stages.append(held[0])
            for name, content in self._layers(stages, tp):
                self._add(name, content)
        made = {*FUSED, INFO}  # AutoEP's ranks say it for themselves
        unused = [
            file
            for file, entries in resume.ranks.items()
            if file not in self._used and not (resume.fused and entries.keys() <= made)
        ]
        warnings = (
            resume.warning(),
            weights_only(inventory),
            no_master(inventory),
            needed_settings(options),
            unstored_names(resume, options),
            rank_state(resume, unused),
        )
        return inventory.planned(self._output, (LATEST, options.tag), warnings, beside="")

    def _held(self, coord: Mapping[str, int]) -> dict[str, LaidTensor]:
        return {tensor.whole: tensor for tensor in self._places.at(coord)}

    def _mp_rank(self, mp_rank: int, held: Sequence[Held]) -> None:
        options = self._options
        groups = [
            written_groups(entries, self._inventory, self._resume, options, ep)
            for ep, entries in enumerate(held)
        ]
        for dp in range(options.dp):
            ep, rank = options.ep_rank(dp), {"dp": dp, "mp": mp_rank}
            if options.zero == 3 or dp == 0:
                name = (MODEL_ZERO3 if options.zero == 3 else MODEL).fill(rank)
                dense = {n: t for n, t in held[ep].items() if not self._experts.owns(n)}
                entries = {**self._own(name), **self._experts.described(dp)}
                self._add(name, with_own(self._model(dense, groups[ep], dp), entries))
            name = OPTIMIZERS[options.prefix].fill(rank)
            entries = {**self._own(name), **self._experts.partition_groups(groups[ep], dp)}
            kept = self._resume.kept_in(name)
            self._add(name, self._optimizers.root(groups[ep], dp, entries, kept))
        for layer, expert, content in self._experts.files(held, self._output):
            name = EXPERT.fill({"layer": layer, "expert": expert, "mp": mp_rank})
            self._add(name, content)

    def _own(self, name: str) -> dict[str, object]:
        """What the source's file of the same rank says for itself, if there is that rank."""
        mesh, options = self._resume.mesh, self._options
        same = (mesh.get("pp", 1), mesh.get("tp", 1)) == (options.pp, options.tp)
        if "zero_pp_rank" in name:
            same = same and mesh.get("dp", 1) == options.dp
        entries = dict(self._resume.ranks.get(name, {})) if same else {}
        if entries:
            self._used.add(name)
        return entries

    def _add(self, name: str, root: object) -> None:
        self._output.add(f"{self._options.tag}/{name}", root)

    # Model files.

    def _model(self, held: Held, groups: Sequence[FlatGroup], dp_rank: int) -> dict[str, object]:
        """The whole tree of one file; held: without experts of other files."""
        options, resume = self._options, self._resume
        names = [whole.name for whole in self._inventory.unmanaged if whole.name in held]
        buffers = set(self._catalog.buffers)
        frozen = [held[name] for name in names if name not in buffers]
        known = self._catalog.aliases or {}
        aliases = {alias: held[name].name for alias, name in known.items() if name in held}
        module = shapes = fragments = None
        if resume.pipeline is None:
            module = resume.module_state(self._module(held, aliases))
        if options.zero > 1:
            shapes = {tensor.name: Size(tensor.shape) for tensor in frozen}
            fragments = {tensor.name: self._frozen(tensor, dp_rank) for tensor in frozen}
        return {
            "module": module,
            "buffer_names": [held[name].name for name in names if name in buffers],
            "optimizer": None,
            "param_shapes": [
                {name: Size(shape) for name, shape in group.shapes.items()} for group in groups
            ],
            "frozen_param_shapes": shapes,
            "shared_params": aliases,
            "frozen_param_fragments": fragments,
            **resume.model_entries(options.sizes, options.config(resume)),
        }

    def _module(self, held: Held, aliases: Mapping[str, str]) -> dict[str, object]:
        is_zero3 = self._options.zero == 3
        trained, buffers = set(self._inventory.trained), set(self._catalog.buffers)
        out: dict[str, object] = {}
        for name, tensor in held.items():
            if not is_zero3 or name in buffers:
                out[tensor.name] = self._weights(tensor)
                continue
            if name in trained:
                self._inventory.derive_weights(name)
            out[tensor.name] = self._empty(name, self._source(name)[1])
        for alias, name in aliases.items():
            out[alias] = out[name]
        for name in self._resume.unstored if is_zero3 else ():
            out.setdefault(name, self._empty(name, self._options.dtype))
        return out

    def _source(self, name: str) -> tuple[str, DType]:
        return self._inventory.weights(name, self._options.stored, self._options.dtype)

    def _weights(self, tensor: LaidTensor) -> NewTensor:
        """A tensor as the model computes with it."""
        state, dtype = self._source(tensor.whole)
        self._inventory.make_weights(tensor.whole)
        numel = prod(tensor.shape)
        spec = ArraySpec(tensor.name, state, dtype, numel, tensor.segments, tensor.shape)
        return self._output.tensor(spec)

    def _empty(self, name: str, dtype: DType) -> NewTensor:
        return self._output.tensor(ArraySpec(f"{name} elsewhere", PARAM, dtype, 0, (), (0,)))

    def _frozen(self, tensor: LaidTensor, dp_rank: int) -> NewTensor:
        """All of a frozen parameter, or at stage 3 a rank's equal share, padded with zeros."""
        if self._options.zero < 3:
            return self._weights(tensor)
        state, dtype = self._source(tensor.whole)
        cut = spread(Each(), [tensor.shape], self._options.dp)
        segments = in_shares(tensor.segments, cut.by_rank[dp_rank])
        label = f"{tensor.name} for dp={dp_rank}"
        return self._output.tensor(ArraySpec(label, state, dtype, cut.lengths[dp_rank], segments))

    def _layers(self, stages: Sequence[Held], tp_rank: int) -> Iterator[tuple[str, object]]:
        """The name and the content of every layer's file of one tensor-parallel rank.

        Args:  stages: by pipeline stage, what it holds.
        """
        kind = LAYER_TP if self._options.tp > 1 else LAYER
        for layer, keys in (self._resume.pipeline or {}).items():
            held = next(
                (stage for stage in stages if all(name in stage for name in keys.values())), None
            )
            if held is None:
                raise target_error(
                    "deepspeed-layer",
                    f"no pipeline stage holds all weights of layer {layer}",
                    notes=[f"it has {', '.join(f'`{name}`' for name in list(keys.values())[:4])}"],
                    helps=["the tensors may have been renamed; convert with their own names"],
                )
            content = {key: self._weights(held[name]) for key, name in keys.items()}
            yield kind.fill({"layer": int(layer), "tp": tp_rank}), content
