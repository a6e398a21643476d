"""What a checkpoint knows besides tensors: counters, schedules, hyper-parameters, client state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reshard.errors import Diagnostic
from reshard.formats.deepspeed.collect import Collected
from reshard.formats.deepspeed.drift import check_settings, differing_buffers, per_rank
from reshard.formats.deepspeed.model_file import (
    COUNTERS,
    OPTIMIZER_PLACES,
    OTHER,
    SCALING,
    ModelFile,
    client_entries,
    without,
)
from reshard.formats.deepspeed.node import Node, scalar_of
from reshard.formats.deepspeed.source import Source
from reshard.formats.deepspeed.weights import compute_dtype
from reshard.models.run_arguments import arguments_in
from reshard.plan.names import group_names, quantity
from reshard.run.run import Group, Run
from reshard.storage.kept import Keeper
from reshard.storage.torch_file import TensorRef

_MEGATRON_SIZES = ("num_layers", "hidden_size", "num_attention_heads")


def read_training(
    source: Source, found: Collected, keeper: Keeper
) -> tuple[Run, tuple[Diagnostic, ...]]:
    """The state of training, and warnings about what is kept without being understood.

    Raises: ReshardError[mixed-runs] where ranks have other settings.
    """
    check_settings(source)
    ranks, ranks_differ = per_rank(source, keeper)
    root = source.first.root
    plain = source.plain.get((0, 0))
    optimizer = None if plain is None else plain.root
    if source.shards:
        optimizer = source.shards[0, 0].optimizer
    models = tuple(source.models.values())
    run = run_of(models, optimizer, _groups(source, found, keeper), keeper, stage=source.stage)
    framework = {
        **run.framework,
        "buffer_names": list(found.buffers),
        "other": {key: _kept(root, key, keeper) for key in OTHER if root.has(key)},
        "per_rank": ranks,
        "saved_over": source.mesh,
    }
    rest = {} if optimizer is None else without(optimizer, (*OPTIMIZER_PLACES, *SCALING))
    optimizer_other = _keep_all(keeper, rest, "optimizer")
    states, kept_as_is = _other_states(source, found, keeper)
    unstored = _unstored(source, found)
    more: dict[str, object] = {
        "optimizer_other": optimizer_other,
        "optimizer_states": states,
        "module_other": {
            model.file: _keep_all(keeper, model.rest, "module") for model in models if model.rest
        },
        "module_paths": {name: list(path) for m in models for name, path in m.paths.items()},
        "unstored": unstored,
        "pipeline": found.layer_keys and {"layers": found.layer_keys},
        "moe": found.expert_layers and {"layers": list(found.expert_layers)},
    }
    framework.update({key: value for key, value in more.items() if value})
    oddities = (
        *_unnamed(found),
        *_weights_alone(source),
        *_lacking(source, unstored),
        *differing_buffers(source),
        *ranks_differ,
        *kept_as_is,
    )
    return Run(run.iteration, run.param_groups, run.state, framework), oddities


def run_of(
    models: Sequence[ModelFile],
    optimizer: Node | None,
    groups: Iterable[Group],
    keeper: Keeper,
    *,
    stage: int | None = None,
) -> Run:
    """What the first model file and the state of the optimizer tell in every form of a checkpoint.

    Args:  stage: of ZeRO; None for a form that is of none.
    """
    root = models[0].root
    groups = tuple(groups)
    state = {"lr_scheduler": _setting(root, "lr_scheduler", keeper)}
    if not root.has("lr_scheduler"):
        state = {}
    for key in SCALING:
        if optimizer is not None and optimizer.has(key):
            state[key] = _setting(optimizer, key, keeper)
    dtype = compute_dtype(models)
    version = root.get("ds_version")
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
    return Run(None if steps is None else steps.integer(), groups, state, framework)


def run_config(
    root: Node,
) -> tuple[Mapping[str, object] | None, tuple[Diagnostic, ...]]:
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


def _setting(root: Node, key: str, keeper: Keeper) -> object:
    node = root.get(key)
    return None if node is None else keeper.setting(node.value, key, node.file)


def _groups(source: Source, found: Collected, keeper: Keeper) -> list[Group]:
    """The groups of the run, each with the settings of the first pipeline stage that has it."""
    groups: dict[int, Node] = {}
    for stage, numbers in reversed(tuple(source.group_numbers.items())):
        nodes = source.param_groups(stage * source.grid.tp)
        if nodes is None:  # elastic checkpoints have no hyper-parameters
            return [Group({}, own) for _, own in sorted(found.groups.items())]
        groups.update(enumerate(nodes) if source.stage == 3 else zip(numbers, nodes, strict=True))
    out = []
    for index, group in sorted(groups.items()):
        parts = [index]
        if source.stage == 3:  # there, a group is several sub-groups
            parts = [item.integer() for item in group.at("params").items()]
        names = dict.fromkeys(name for part in parts for name in found.groups.get(part, {}))
        out.append(group_of(index, group, names, keeper))
    return out


# What is kept without being understood.


def _other_states(
    source: Source, found: Collected, keeper: Keeper
) -> tuple[dict[str, object], tuple[Diagnostic, ...]]:
    """States that are neither one number per element nor one per group, by file."""
    ranks = {shard.file: f".rank.{dp}.{mp}" for (dp, mp), shard in source.shards.items()}
    out: dict[str, object] = {
        file: _keep_all(keeper, own, f"optimizer{ranks.get(file, '')}")
        for file, own in found.kept.items()
    }
    values: dict[str, list[object]] = {}
    for own in found.kept.values():
        for key, node in own.items():
            values.setdefault(key.partition(".")[2], []).append(node.value)
    if not values:
        return out, ()
    listed = ", ".join(f"`{name}`" for name in values)
    what, are = ("state", "is") if len(values) == 1 else ("states", "are")
    return out, (
        Diagnostic(
            "kept-as-is",
            f"optimizer {what} {listed} of single ranks {are} kept as found",
            level="warning",
            notes=(
                *(_why(state, own) for state, own in values.items()),
                "only a run of the same size and partition can take them up again",
                f"first read from {next(iter(out))}",
            ),
        ),
    )


def _why(state: str, values: Sequence[object]) -> str:
    """Why a state is not cut anew, as its values show."""
    numbers = [scalar_of(Node(value, "")) for value in values]
    if all(numbers):
        shown = ", ".join(list(dict.fromkeys(str(number) for number in numbers))[:4])
        return f"`{state}` is one number, and ranks have different ones: {shown}"
    if all(isinstance(value, TensorRef) for value in values):
        shapes = dict.fromkeys(str(list(v.shape)) for v in values if isinstance(v, TensorRef))
        listed = ", ".join(list(shapes)[:4])
        return f"`{state}` does not have one number for each element: it has shape {listed}"
    return f"`{state}` is no tensor by itself"


def _unstored(source: Source, found: Collected) -> list[str]:
    """Names that a module of stage 3 lists and no file holds: second names that nothing tells."""
    if source.stage != 3:
        return []
    known = {tensor.name for tensor in found.tensors} | set(found.aliases)
    return [name for name in source.first.module if name not in known]


def _lacking(source: Source, names: Sequence[str]) -> tuple[Diagnostic, ...]:
    """A warning for parameters of a model that no file holds."""
    if not names:
        return ()
    groups = [f"`{name}`{quantity(count)}" for name, count in group_names(names)]
    shown = ", ".join(groups[:6]) + (f", and {len(groups) - 6} more" if len(groups) > 6 else "")
    what = (
        "name of the model has a tensor" if len(names) == 1 else "names of the model have tensors"
    )
    return (
        Diagnostic(
            "unstored-parameter",
            f"{len(names)} {what} in no file of this checkpoint",
            level="warning",
            notes=(
                shown,
                f"`module` in {source.first.file} has empty tensors for them, and they are neither "
                "in a param group nor among the frozen parameters",
                "they are parameters that DeepSpeed did not save, or second names of other tensors",
            ),
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
        Diagnostic(
            "no-optimizer-states",
            "the checkpoint has weights, and no states of the optimizer",
            level="warning",
            notes=(
                f"`param_shapes` in {source.first.file} names parameters that were trained",
                "DeepSpeed before 0.19 saves no optimizer of a bf16 run at ZeRO stage 0",
            ),
        ),
    )


def _unnamed(found: Collected) -> tuple[Diagnostic, ...]:
    """A warning that states are stored which have no names."""
    return tuple(
        Diagnostic(
            "unnamed-states",
            "states of the optimizer are stored, and it is not known of which parameters",
            level="warning",
            notes=item.notes,
            helps=item.helps,
        )
        for item in found.withheld
    )
