"""What a checkpoint knows besides tensors: counters, schedules, hyper-parameters, client state.

All ranks must have the same settings; what each may have for itself is kept by file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from reshard.errors import Diagnostic, warning
from reshard.formats.deepspeed.collect import Collected
from reshard.formats.deepspeed.experts import FUSED
from reshard.formats.deepspeed.model_file import (
    COUNTERS,
    MODEL_PLACES,
    OPTIMIZER_PLACES,
    OTHER,
    SCALING,
    ModelFile,
    client_entries,
    differing,
    without,
)
from reshard.formats.deepspeed.node import Node, scalar_of
from reshard.formats.deepspeed.optimizer_file import base_of
from reshard.formats.deepspeed.source import Source
from reshard.formats.deepspeed.weights import compute_dtype
from reshard.models.run_arguments import arguments_in
from reshard.plan.agreement import agreed, disagreements
from reshard.plan.names import listed_kinds, some
from reshard.run.run import Group, Run
from reshard.storage.inert import Record
from reshard.storage.kept import Keeper, fingerprint
from reshard.storage.torch_file import TensorRef

_MEGATRON_SIZES = ("num_layers", "hidden_size", "num_attention_heads")


def read_training(
    source: Source, collected: Collected, keeper: Keeper
) -> tuple[Run, tuple[Diagnostic, ...]]:
    """The state of training, and warnings about what is kept without being understood.

    Raises: ReshardError[mixed-runs] where ranks have other settings.
    """
    _check_settings(source)
    ranks, ranks_differ = _per_rank(source, keeper)
    root, models = source.first.root, tuple(source.models.values())
    plain = source.plain.get((0, 0))
    optimizer = None if plain is None else plain.root
    if source.shards:
        optimizer = source.shards[0, 0].optimizer
    run = run_of(models, optimizer, _groups(source, collected, keeper), keeper, source.stage)
    framework = {
        **run.framework,
        "buffer_names": list(collected.buffers),
        "other": {key: _kept(root, key, keeper) for key in OTHER if root.has(key)},
        "per_rank": ranks,
        "saved_over": source.mesh,
    }
    rest = {} if optimizer is None else without(optimizer, (*OPTIMIZER_PLACES, *SCALING))
    more: dict[str, object] = {
        "optimizer_other": _keep_all(keeper, rest, "optimizer"),
        "optimizer_states": _other_states(source, collected, keeper),
        "module_other": {
            model.file: _keep_all(keeper, model.rest, "module") for model in models if model.rest
        },
        "module_paths": {name: list(path) for m in models for name, path in m.paths.items()},
        "unstored": _unstored(source, collected),
        "pipeline": collected.layer_keys and {"layers": collected.layer_keys},
        "moe": collected.expert_layers and {"layers": list(collected.expert_layers)},
    }
    framework.update({key: value for key, value in more.items() if value})
    oddities = (
        *_unnamed(collected),
        *_weights_alone(source),
        *_lacking(source, collected),
        *_differing_buffers(source),
        *ranks_differ,
        *_kept_as_is(collected),
    )
    return Run(run.iteration, run.param_groups, run.state, framework), oddities


def run_of(
    models: Sequence[ModelFile],
    optimizer: Node | None,
    groups: Iterable[Group],
    keeper: Keeper,
    stage: int | None = None,
) -> Run:
    """What the first model file and the state of the optimizer tell in every form of a checkpoint.

    Args:  stage: of ZeRO; None for a form that is of none.
    """
    root = models[0].root
    state: dict[str, object] = {}
    for node, keys in ((root, ("lr_scheduler",)), (optimizer, SCALING)):
        for key in keys if node is not None else ():
            if node is not None and node.has(key):
                value = node.get(key)
                state[key] = None if value is None else keeper.setting(value.value, key, value.file)
    dtype, version = compute_dtype(models), root.get("ds_version")
    framework: dict[str, object] = {
        "name": "deepspeed",
        "version": None if version is None else str(version.value),
        "zero_stage": stage,
        "compute_dtype": None if dtype is None else dtype.value,
        "ds_config": _kept(root, "ds_config", keeper),
        "counters": {key: _kept(root, key, keeper) for key in COUNTERS if root.has(key)},
        "client_state": _keep_all(keeper, client_entries(root), "client_state"),
        "universal_checkpoint_info": _kept(root, "universal_checkpoint_info", keeper),
        "buffer_names": list(models[0].buffer_names),
    }
    if stage is None:
        del framework["zero_stage"], framework["universal_checkpoint_info"]
    steps = root.get("global_steps")
    return Run(None if steps is None else steps.integer(), tuple(groups), state, framework)


def run_config(root: Node) -> tuple[Mapping[str, object] | None, tuple[Diagnostic, ...]]:
    """The sizes and facts of the model in the arguments of a run of Megatron-DeepSpeed, which its
    client state has, with a warning of padding; None where no such arguments are there.
    """
    node = root.get("args")
    args = None if node is None else arguments_in(node.value, node.file)
    if args is None or not all(args.integer(name) for name in _MEGATRON_SIZES):
        return None, ()
    padding = args.padding(args.true_vocabulary(), " where the names of a model are wanted")
    return args.config(), () if padding is None else (padding,)


def group_of(index: int, node: Node, names: Iterable[str], keeper: Keeper) -> Group:
    """A param group, whose parameters only its place tells."""
    settings = {
        key: keeper.setting(item.value, f"param_groups.{index}.{key}", item.file)
        for key, item in node.entries()
        if key != "params"
    }
    return Group(settings, names)


def _keep_all(keeper: Keeper, nodes: Mapping[str, Node], name: str) -> dict[str, object]:
    return {key: keeper.keep(n.value, f"{name}.{key}", n.file) for key, n in nodes.items()}


def _kept(root: Node, key: str, keeper: Keeper) -> object:
    node = root.get(key)
    return None if node is None else keeper.keep(node.value, key, node.file)


def _groups(source: Source, collected: Collected, keeper: Keeper) -> list[Group]:
    """The groups of the run, each with the settings of the first pipeline stage that has it."""
    groups: dict[int, Node] = {}
    for stage, numbers in reversed(tuple(source.group_numbers.items())):
        nodes = source.param_groups(stage * source.grid.tp)
        if nodes is None:  # elastic checkpoints have no hyper-parameters
            return [Group({}, own) for _, own in sorted(collected.groups.items())]
        groups.update(enumerate(nodes) if source.stage == 3 else zip(numbers, nodes, strict=True))
    out = []
    for index, group in sorted(groups.items()):
        # At stage 3 a group is several sub-groups.
        parts = group.at("params").integers() if source.stage == 3 else (index,)
        names = dict.fromkeys(name for part in parts for name in collected.groups.get(part, {}))
        out.append(group_of(index, group, names, keeper))
    return out


# What is kept without being understood.


def _other_states(source: Source, collected: Collected, keeper: Keeper) -> dict[str, object]:
    """States that are neither one number per element nor one per group, by file."""
    ranks = {shard.file: f".rank.{dp}.{mp}" for (dp, mp), shard in source.shards.items()}
    return {
        file: _keep_all(keeper, nodes, f"optimizer{ranks.get(file, '')}")
        for file, nodes in collected.kept.items()
    }


def _kept_as_is(collected: Collected) -> tuple[Diagnostic, ...]:
    values: dict[str, list[Node]] = {}
    for nodes_of_file in collected.kept.values():
        for key, node in nodes_of_file.items():
            values.setdefault(key.partition(".")[2], []).append(node)
    if not values:
        return ()
    listed = ", ".join(f"`{name}`" for name in values)
    what, are = ("state", "is") if len(values) == 1 else ("states", "are")
    notes = (
        *(_why(state, nodes) for state, nodes in values.items()),
        "only a run of the same size and partition can load them again",
        f"first read from {next(iter(collected.kept))}",
    )
    headline = f"optimizer {what} {listed} of single ranks {are} kept unchanged"
    return (warning("kept-as-is", headline, *notes),)


def _why(state: str, nodes: Sequence[Node]) -> str:
    """Why a state is not cut anew, as its values show."""
    numbers = [scalar_of(node) for node in nodes]
    if all(numbers):
        shown = ", ".join(list(dict.fromkeys(map(str, numbers)))[:4])
        return f"`{state}` is one number, and ranks have different ones: {shown}"
    shapes = [f"{list(n.value.shape)}" for n in nodes if isinstance(n.value, TensorRef)]
    if len(shapes) == len(nodes):
        shown = ", ".join(list(dict.fromkeys(shapes))[:4])
        return f"`{state}` does not have one number for each element: it has shape {shown}"
    return f"`{state}` is no tensor by itself"


def _unstored(source: Source, collected: Collected) -> list[str]:
    """Names that a module of stage 3 lists and no file holds: second names that nothing tells."""
    if source.stage != 3:
        return []
    known = {tensor.name for tensor in collected.tensors} | set(collected.aliases)
    return [name for name in source.first.module if name not in known]


def _lacking(source: Source, collected: Collected) -> tuple[Diagnostic, ...]:
    """A warning for parameters of a model that no file holds."""
    names = _unstored(source, collected)
    if not names:
        return ()
    is_one = len(names) == 1
    what = "name of the model has a tensor" if is_one else "names of the model have tensors"
    return (
        warning(
            "unstored-parameter",
            f"{len(names)} {what} in no file of this checkpoint",
            some(listed_kinds(names)),
            f"`module` in {source.first.file} has empty tensors for them, and they are neither "
            "in a param group nor among the frozen parameters",
            "they are parameters that DeepSpeed did not save, or second names of other tensors",
            helps=(
                "at ZeRO stage 3 it saves no parameter that is in no param group or was unfrozen "
                "after the start; where the run can be loaded, `engine.save_16bit_model` writes "
                "all weights",
            ),
        ),
    )


def _weights_alone(source: Source) -> tuple[Diagnostic, ...]:
    """A warning that the run had an optimizer whose states are not in the checkpoint."""
    if source.shards or source.plain or source.first.param_shapes is None:
        return ()
    return (
        warning(
            "no-optimizer-states",
            "the checkpoint has weights, and no states of the optimizer",
            f"`param_shapes` in {source.first.file} names parameters that were trained",
            "DeepSpeed before 0.19 saves no optimizer of a bf16 run at ZeRO stage 0",
        ),
    )


def _unnamed(collected: Collected) -> tuple[Diagnostic, ...]:
    """A warning that states are stored which have no names."""
    headline = (
        "states of the optimizer are stored, but it is not known which parameters they belong to"
    )
    return tuple(
        warning("unnamed-states", headline, *item.notes, helps=item.helps)
        for item in collected.withheld
    )


# What all ranks must say alike, and what they may have each for itself.

_COPIES = ("loss_scaler", "dynamic_loss_scale", "clip_grad")
"""Entries of an optimizer's state that are copies on every rank."""

_SETTINGS = frozenset(
    """
    lr initial_lr max_lr min_lr base_lr weight_decay decoupled_weight_decay eps betas beta1 beta2
    momentum base_momentum max_momentum momentum_decay dampening nesterov rho alpha amsgrad
    maximize bias_correction adam_w_mode use_muon ns_method moe name
    """.split()  # noqa: SIM905
)
"""Hyper-parameters; other entries of a param group may be what an optimizer adapts on each rank."""

_MAY_DIFFER = ("overflow", "lr_scheduler", *FUSED)
"""What differs between steps, pipeline stages, and expert-parallel ranks."""

_OF_A_RANK = ("rank", "rng", "random", "device", "seed", "host", "pid", "time")
"""Parts of names of what every rank has for itself."""

_MOST_COMPARED = 1 << 20
"""Bytes of a buffer; larger ones are not looked at."""


def _check_settings(source: Source) -> None:
    """Refuse ranks of one pipeline stage that have other hyper-parameters or another schedule."""
    key = "lr_scheduler"
    for stage in range(source.grid.pp):
        shards = [s for (_, mp), s in source.shards.items() if source.grid.stage(mp) == stage]
        if shards:
            copies = [(shard.file, _settings(shard.optimizer)) for shard in shards]
            agreed(copies, "settings of the optimizer")
        models = [m for (_, mp), m in source.models.items() if source.grid.stage(mp) == stage]
        schedules = [(model.file, {key: _plain(model.root.mapping().get(key))}) for model in models]
        agreed(schedules, "learning rate schedules")


def _settings(optimizer: Node) -> dict[str, object]:
    base = base_of(optimizer)
    nodes = base.at("param_groups").items() if base is not None and base.has("param_groups") else ()
    groups = [
        {str(key): _plain(value) for key, value in group.mapping().items() if key in _SETTINGS}
        for group in nodes
    ]
    return {"param_groups": groups, **{k: _plain(optimizer.mapping().get(k)) for k in _COPIES}}


def _differing_buffers(source: Source) -> tuple[Diagnostic, ...]:
    """A warning for buffers that differ between the data-parallel ranks of stage 3."""
    names: dict[str, str] = {}
    for rank, model in source.models.items():
        first = source.models[0, rank[1]].module
        for name in model.buffer_names:
            one, other = first.get(name), model.module.get(name)
            if one is None or other is None or name in names or one.nbytes > _MOST_COMPARED:
                continue
            if fingerprint(one) != fingerprint(other):
                names[name] = f"`{name}` in {model.file}"
    if not names:
        return ()
    what, which = f"{len(names)} buffers differ", "those of rank 0 are"
    if len(names) == 1:
        what, which = "1 buffer differs", "that of rank 0 is"
    headline = f"{what} between data-parallel ranks; {which} read"
    return (_ranks_differ(headline, ", ".join([*names.values()][:6])),)


def _per_rank(
    source: Source, keeper: Keeper
) -> tuple[dict[str, dict[str, object]], tuple[Diagnostic, ...]]:
    """By file, what it says otherwise than the first rank's, and a warning where few files do."""
    out: dict[str, dict[str, object]] = {}
    listed: dict[str, str] = {}

    def compare(
        file: str, first: Mapping[str, Node], entries: Mapping[str, Node], name: str
    ) -> None:
        for key in differing(first, entries):
            node = entries.get(key)
            out.setdefault(file, {})[key] = (
                {"$missing": True}
                if node is None
                else keeper.keep(node.value, f"{name}.{key}", node.file)
            )
            sides = [("", {key: _plain(side)}) for side in (first.get(key), node)]
            for one in disagreements(sides, of_each=_MAY_DIFFER):
                path = re.sub(r"\[\d+\]", "", one.path)
                if not any(part in path.lower() for part in _OF_A_RANK):
                    listed.setdefault(f"`{path}`", file)

    first = without(source.first.root, MODEL_PLACES)
    for (dp, mp), model in source.models.items():
        if model is not source.first:
            compare(model.file, first, without(model.root, MODEL_PLACES), f"rank.{dp}.{mp}")
    stated = {rank: _optimizer_entries(shard.optimizer) for rank, shard in source.shards.items()}
    for (dp, mp), entries in stated.items():
        alike = stated[0, source.grid.stage(mp) * source.grid.tp]
        groups = {"param_groups": alike["param_groups"]} if "param_groups" in alike else {}
        name = f"optimizer.rank.{dp}.{mp}"
        compare(source.shards[dp, mp].file, {**stated[0, 0], **groups}, entries, name)
    if not listed:
        return out, ()
    shown = some(f"{entry} in {file}" for entry, file in listed.items())
    other = "`universal` keeps the values of each rank; other targets have those of rank 0"
    headline = "files of other ranks differ from that of rank 0"
    return out, (_ranks_differ(headline, shown, other),)


def _optimizer_entries(optimizer: Node) -> dict[str, Node]:
    """Everything in an optimizer's state that is not about where tensors are."""
    out = without(optimizer, OPTIMIZER_PLACES)
    base = base_of(optimizer)
    if base is not None and base.has("param_groups"):
        out["param_groups"] = base.at("param_groups")
    return out


def _ranks_differ(headline: str, *notes: str) -> Diagnostic:
    advice = "check that the files are of one run, where the ranks should be alike"
    return warning("ranks-differ", headline, *notes, helps=(advice,))


def _plain(value: object) -> object:
    """A value as JSON, an object as what it has by name."""
    if isinstance(value, Node):
        return _plain(value.value)
    if isinstance(value, Record) and value.attributes:
        value = value.attributes
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return fingerprint(value)
