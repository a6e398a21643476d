"""Writes the legacy `torch` format: the files that each model-parallel rank loads.

Source: Megatron-LM, megatron/training/checkpointing.py `save_checkpoint`, `load_checkpoint`,
`get_checkpoint_name`; docs/formats/megatron-writing.md says what each file holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reshard.errors import ReshardError, target_error
from reshard.formats.megatron.groups import Optimizer
from reshard.formats.megatron.legacy import EMBEDDING, OUTPUT
from reshard.formats.megatron.modules import description, is_expert
from reshard.formats.megatron.names import stacks_of
from reshard.formats.megatron.ranks import DISTRIBUTED, MODEL_FILES, rank_folder
from reshard.formats.megatron.write_arguments import namespace
from reshard.formats.megatron.write_job import Job
from reshard.formats.megatron.write_optimizer import flat_buffers, rank_optimizers
from reshard.formats.megatron.write_options import LEGACY
from reshard.language.expression import known_value
from reshard.language.layout import Split
from reshard.plan.arrangement import Arrangement, Bound
from reshard.plan.axes import AxisCut
from reshard.plan.lay_out import LaidTensor, lay_out
from reshard.plan.output import Output
from reshard.plan.target import Target
from reshard.run.states import PARAM
from reshard.storage.inert import Record

_STATEFUL = ("linear_proj", "linear_qkv", "linear_fc1", "linear_fc2", "output_layer")
"""Modules whose state dict has an entry `_extra_state`."""
_LAST = "decoder.final_layernorm."
"""What the last stage has before its output layer."""


Place = tuple[int, ...]
Numbered = tuple[int, LaidTensor]


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  arrangement: in the names of a layout `megatron`.  target: see `write_options.LEGACY`.
    Raises: ReshardError[unknown-option | bad-option | uneven-target | numbers-disagree |
            megatron-weights | megatron-steps | megatron-groups | megatron-order |
            megatron-distributed].
    """
    job = Job(arrangement, target, LEGACY)
    _Run(job).write()
    return job.planned()


class _Run:
    """The files of all ranks."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._inventory = job.inventory
        self._options = options = job.options
        arrangement = job.arrangement
        mesh = {"vpp": options.vpp, "pp": options.pp, "tp": options.tp, "ep": options.ep}
        if options.etp != options.tp:
            arrangement = _experts_apart(arrangement)
            mesh["etp"] = options.etp
        self._laid = lay_out(arrangement, mesh)
        self._places = _by_place(self._laid)
        self._stages = self._count_layers()
        self._tied = any(t.whole == OUTPUT for t in self._laid) and self._is_tied()
        rows = [t.shape[0] for t in self._laid if t.whole == EMBEDDING]
        self._padded = rows[0] * options.tp if rows else None
        resume = job.resume
        job.has_rng = resume.mesh == (options.tp, options.pp, options.ep) and all(
            (tp, pp, ep) in resume.rng
            for tp, ep in options.expert_ranks()
            for pp in range(options.pp)
        )

    def write(self) -> None:
        """Plan every file."""
        options = self._options
        optimizers: tuple[Optimizer, ...] = ()
        if self._job.has_optimizer:
            dims = {t.whole: len(t.shape) for t in self._laid}
            resting = self._inventory.resting
            optimizers = self._job.builder.build(
                {name: count for name, count in dims.items() if name not in resting}
            )
            self._inventory.fold_steps()
        for pp in range(options.pp):
            for tp, ep in options.expert_ranks():
                self._rank(tp, pp, ep, optimizers)

    def _rank(self, tp: int, pp: int, ep: int, optimizers: Sequence[Optimizer]) -> None:
        options, job = self._options, self._job
        name = rank_folder((tp, pp, ep), (options.tp, options.pp, options.ep))
        place = {"tp": tp, "pp": pp, "ep": ep, "etp": tp % options.etp}
        chunks = [self._held({**place, "vpp": vpp}) for vpp in range(options.vpp)]
        keys = ["model"] if options.vpp == 1 else [f"model{vpp}" for vpp in range(options.vpp)]
        model = {key: self._model(chunk, name) for key, chunk in zip(keys, chunks, strict=True)}
        optimizer = None
        if optimizers:
            ordered = [self._trained(chunk) for chunk in chunks]
            optimizer = rank_optimizers(job, ordered, optimizers, name)
            if options.distributed:
                buffers = flat_buffers(
                    job,
                    ordered,
                    optimizers,
                    name,
                    shared=(EMBEDDING, OUTPUT) if self._tied else (),
                    is_first=pp == 0,
                    has_dense=ep == options.expert_rank(tp),
                )
                job.output.add(f"{options.folder}/{name}/{DISTRIBUTED}", buffers)
        args = namespace(job, self._stages, self._padded, options.rank(tp, pp, ep))
        rng = job.resume.rng[tp, pp, ep] if job.has_rng else None
        root = job.tree(args, model, optimizer, rng)
        job.output.add(f"{options.folder}/{name}/{MODEL_FILES[0]}", root)

    def _model(self, chunk: Sequence[LaidTensor], rank: str) -> Record:
        """A module's state dict: its tensors in order, and the entries that hold nothing."""
        entries: list[tuple[object, object]] = []
        modules = [tensor.name.rpartition(".")[0] for tensor in chunk]
        chunk_names = {tensor.name for tensor in chunk}
        for index, tensor in enumerate(chunk):
            dtype = self._inventory.dtype(tensor.whole)
            entries.append((tensor.name, self._job.tensor(tensor, PARAM, dtype, rank)))
            module = modules[index]
            last = index + 1 == len(chunk) or modules[index + 1] != module
            if last and module.rpartition(".")[2] in _STATEFUL:
                entries.append((f"{module}._extra_state", None))
        if any(tensor.name.startswith(_LAST) for tensor in chunk) and OUTPUT not in chunk_names:
            entries.append((f"{OUTPUT.rpartition('.')[0]}._extra_state", None))  # tied
        return Record("collections", "OrderedDict", (), "reduce", [], entries)

    def _trained(self, chunk: Sequence[LaidTensor]) -> list[LaidTensor]:
        """The parameters that an optimizer has, in the order in which it counts them."""
        tensors = [tensor for tensor in chunk if tensor.whole not in self._inventory.resting]
        ordered = self._in_order(tensors)
        if ordered is None:
            order = description().orders[0]
            raise _no_order(next(t.name for t in tensors if not order.has(t.name)))
        return ordered

    def _held(self, coord: Mapping[str, int]) -> list[LaidTensor]:
        """The tensors of one model chunk of one rank, in Megatron's order as far as it is known."""
        numbered: list[tuple[int, LaidTensor]] = []
        for axes, table in self._places.items():
            numbered += table.get(tuple(coord.get(axis, 0) for axis in axes), ())
        tensors = [tensor for _, tensor in sorted(numbered, key=lambda item: item[0])]
        return self._in_order(tensors) or tensors

    def _in_order(self, tensors: Sequence[LaidTensor]) -> list[LaidTensor] | None:
        """Tensors as their modules register them: as the target's layout says, else as Megatron's
        own modules do. None where neither knows all of them.
        """
        for order in (*self._job.arrangement.layout.orders, *description().orders):
            holds = order.when is None or known_value(order.when, self._job.arrangement.values)
            if holds and all(order.has(tensor.name) for tensor in tensors):
                return sorted(tensors, key=lambda tensor: order.key(tensor.name))
        return None

    def _count_layers(self) -> tuple[int, ...]:
        """Layers of every virtual stage, chunk major, then stage."""
        options = self._options
        names = []
        for tensor in self._laid:
            coord = dict(tensor.coord)
            names.append((coord.get("vpp", 0) * options.pp + coord.get("pp", 0), tensor.name))
        counts = [stack.counts for stack in stacks_of(names, options.vpp * options.pp).values()]
        return tuple(map(max, *counts, [0] * options.vpp * options.pp))

    def _is_tied(self) -> bool:
        """Whether the output layer of the last stage is a copy of the embedding."""
        atoms = [
            set(self._job.arrangement.bound[name].atoms.values()) for name in (OUTPUT, EMBEDDING)
        ]
        return atoms[0] == atoms[1]


def _by_place(laid: Sequence[LaidTensor]) -> dict[tuple[str, ...], dict[Place, list[Numbered]]]:
    """Tensors with their numbers, by the mesh axes of their coordinates, and by their places."""
    out: dict[tuple[str, ...], dict[Place, list[Numbered]]] = {}
    for number, tensor in enumerate(laid):
        axes = tuple(axis for axis, _ in tensor.coord)
        place = tuple(index for _, index in tensor.coord)
        out.setdefault(axes, {}).setdefault(place, []).append((number, tensor))
    return out


def _experts_apart(arrangement: Arrangement) -> Arrangement:
    """Experts cut over the axis `etp`, where dense layers are cut over `tp`."""
    layout = arrangement.layout
    rules = list(layout.rules)
    bound: dict[str, Bound] = {}
    for name, item in arrangement.bound.items():
        if not is_expert(name):
            bound[name] = item
            continue
        cuts = {axis: _over_etp(cut) for axis, cut in item.cuts.items()}
        bound[name] = replace(item, cuts=cuts)
        rule = rules[item.rule]
        splits = dict(rule.splits)
        for axis, cut in item.cuts.items():
            split = splits.get(axis) or layout.places.get(axis, Split())
            if "tp" in cut.over:
                splits[axis] = replace(split, over=_renamed(split.over))
        rules[item.rule] = replace(rule, splits=splits)
    return replace(arrangement, layout=replace(layout, rules=tuple(rules)), bound=bound)


def _over_etp(cut: AxisCut) -> AxisCut:
    return replace(cut, over=_renamed(cut.over))


def _renamed(over: Sequence[str]) -> tuple[str, ...]:
    return tuple("etp" if axis == "tp" else axis for axis in over)


def _no_order(name: str) -> ReshardError:
    return target_error(
        "megatron-order",
        f"the place of `{name}` among Megatron's parameters is not known",
        notes=["the optimizer's states have no names there: they are counted in that order"],
        helps=[
            "write the format that names them, `megatron-dist`",
            'or state it in the layout of the target: `order "embedding", ...`',
            "or leave the optimizer out with `--states weights`",
        ],
    )
