"""Writes the legacy `torch` format: the files that each model-parallel rank loads.

Source: Megatron-LM, megatron/training/checkpointing.py `save_checkpoint`, `load_checkpoint`,
`get_checkpoint_name`; docs/formats/megatron-writing.md says what each file holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reshard.errors import ReshardError, target_error
from reshard.formats.megatron.groups import Optimizer
from reshard.formats.megatron.modules import description, is_expert
from reshard.formats.megatron.names import stacks_of
from reshard.formats.megatron.ranks import DISTRIBUTED, MODEL_FILES, rank_folder
from reshard.formats.megatron.write_job import Job, namespace
from reshard.formats.megatron.write_optimizer import flat_buffers, rank_optimizers
from reshard.formats.megatron.write_run import LEGACY
from reshard.language.expression import known_value
from reshard.language.layout import Split
from reshard.models.megatron_arguments import EMBEDDING, OUTPUT, is_tied
from reshard.plan.arrangement import Arrangement
from reshard.plan.lay_out import ByPlace, LaidTensor, lay_out
from reshard.plan.output import Output
from reshard.plan.target import Target
from reshard.run.states import PARAM
from reshard.storage.inert import Record

_STATEFUL = ("linear_proj", "linear_qkv", "linear_fc1", "linear_fc2", "output_layer")
"""Modules whose state dict has an entry `_extra_state`."""
_LAST = "decoder.final_layernorm."
"""What the last stage has before its output layer."""


def prepare(arrangement: Arrangement, target: Target) -> Output:
    """The folder as arrays with their places.

    Args:  arrangement: in the names of a layout `megatron`.  target: see `write_run.LEGACY`.
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
        self._places = ByPlace(self._laid)
        self._stages = self._count_layers()
        self._tied = is_tied(job.arrangement) is True
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
        chunks = [self._places.at({**place, "vpp": vpp}) for vpp in range(options.vpp)]
        chunks = [self._in_order(chunk) or chunk for chunk in chunks]
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
        for tensor, module, after in zip(chunk, modules, [*modules[1:], ""], strict=False):
            dtype = self._inventory.dtype(tensor.whole)
            entries.append((tensor.name, self._job.tensor(tensor, PARAM, dtype, rank)))
            if after != module and module.rpartition(".")[2] in _STATEFUL:
                entries.append((f"{module}._extra_state", None))
        names = [tensor.name for tensor in chunk]
        if any(name.startswith(_LAST) for name in names) and OUTPUT not in names:
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


def _experts_apart(arrangement: Arrangement) -> Arrangement:
    """Experts cut over the axis `etp`, where dense layers are cut over `tp`."""
    layout, bound = arrangement.layout, dict(arrangement.bound)
    rules = list(layout.rules)
    for name, item in arrangement.bound.items():
        if not is_expert(name):
            continue
        cuts = {axis: replace(cut, over=_over_etp(cut.over)) for axis, cut in item.cuts.items()}
        bound[name] = replace(item, cuts=cuts)
        splits = dict(rules[item.rule].splits)
        for axis, cut in item.cuts.items():
            if "tp" in cut.over:
                split = splits.get(axis) or layout.places.get(axis, Split())
                splits[axis] = replace(split, over=_over_etp(split.over))
        rules[item.rule] = replace(rules[item.rule], splits=splits)
    return replace(arrangement, layout=replace(layout, rules=tuple(rules)), bound=bound)


def _over_etp(over: Sequence[str]) -> tuple[str, ...]:
    return tuple("etp" if axis == "tp" else axis for axis in over)


def _no_order(name: str) -> ReshardError:
    return target_error(
        "megatron-order",
        f"the position of `{name}` among Megatron's parameters is unknown",
        notes=["the optimizer's states have no names there: they are numbered in that order"],
        helps=[
            "write the format that names them, `megatron-dist`",
            'or state it in the layout of the target: `order "embedding", ...`',
            "or leave the optimizer out with `--states weights`",
        ],
    )
