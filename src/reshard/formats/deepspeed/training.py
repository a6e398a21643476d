"""What a checkpoint knows besides tensors: counters, schedules, hyper-parameters, client state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reshard.errors import Diagnostic
from reshard.formats.deepspeed.collect import Collected
from reshard.formats.deepspeed.drift import (
    Changed,
    check_settings,
    differing_buffers,
    differing_entries,
)
from reshard.formats.deepspeed.group_numbers import group_nodes
from reshard.formats.deepspeed.keeper import Keeper, differing
from reshard.formats.deepspeed.model_file import ModelFile
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.scalar import scalar_of
from reshard.formats.deepspeed.source import Source
from reshard.formats.deepspeed.weights import compute_dtype
from reshard.plan.names import group_names, quantity
from reshard.run.run import Group, Run
from reshard.storage.torch_file import TensorRef

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
_STRUCTURE = (
    "module",
    "buffer_names",
    "optimizer",
    "param_shapes",
    "frozen_param_shapes",
    "frozen_param_fragments",
    "shared_params",
    "dp_world_size",
    "mp_world_size",
    "checkpoint_parallel_dimensions",
    "ds_version",
)
"""Entries of a model file that say where tensors are; the catalog is made of them."""
_OTHER = (
    "data_sampler",
    "random_ltd",
    "num_experts",
    "ds_autoep_layers",
    "autoep_layers",
    "csr_tensor_module_names",
    "sparse_tensor_module_names",
)
_STATE = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
_PARTITIONS = (
    "zero_stage",
    "base_optimizer_state",
    "base_optimizer_state_step",
    "single_partition_of_fp32_groups",
    "group_paddings",
    "param_alignment_paddings",
    "partition_count",
    "param_slice_mappings",
    "optimizer_state_dict",
    "fp32_flat_groups",
    "fp32_groups",
    "fp32_groups_flat",
    "ds_zero_partition_groups",
    "ds_version",
    "universal_checkpoint_info",
    "state",
    "param_groups",
)
"""Entries of an optimizer's state that say where tensors are."""


def read_training(
    source: Source, found: Collected, keeper: Keeper
) -> tuple[Run, tuple[Diagnostic, ...]]:
    """The state of training, and warnings about what is kept without being understood.

    Raises: ReshardError[mixed-runs] where ranks have other settings.
    """
    check_settings(source)
    per_rank, changed = _per_rank(source, keeper)
    first = source.first
    root = first.root
    optimizer = _optimizer(source)
    state: dict[str, object] = {}
    if root.has("lr_scheduler"):
        state["lr_scheduler"] = setting(root, "lr_scheduler", keeper)
    for key in _STATE:
        if optimizer is not None and optimizer.has(key):
            state[key] = setting(optimizer, key, keeper)
    dtype = compute_dtype(source.models.values())
    framework: dict[str, object] = {
        "name": "deepspeed",
        "version": text_of(root, "ds_version"),
        "zero_stage": source.stage,
        "compute_dtype": None if dtype is None else dtype.value,
        "ds_config": kept(root, "ds_config", keeper),
        "counters": {key: kept(root, key, keeper) for key in COUNTERS if root.has(key)},
        "client_state": {
            key: keeper.json(node, f"client_state.{key}")
            for key, node in client_entries(root).items()
        },
        "universal_checkpoint_info": kept(root, "universal_checkpoint_info", keeper),
        "buffer_names": list(found.buffers),
        "other": {key: kept(root, key, keeper) for key in _OTHER if root.has(key)},
        "per_rank": per_rank,
        "saved_over": source.mesh,
    }
    if optimizer is not None:
        rest = _rest(optimizer)
        if rest:
            framework["optimizer_other"] = {
                key: keeper.json(node, f"optimizer.{key}") for key, node in rest.items()
            }
    kept_states, kept_as_is = _other_states(source, found, keeper)
    if kept_states:
        framework["optimizer_states"] = kept_states
    module = _module_rest(source.models.values(), keeper)
    if module:
        framework["module_other"] = module
    paths = {name: list(path) for m in source.models.values() for name, path in m.paths.items()}
    if paths:
        framework["module_paths"] = paths
    unstored = _unstored(source, found)
    oddities = (
        *_unnamed(found),
        *_weights_alone(source),
        *_lacking(source, unstored),
        *differing_buffers(source),
        *differing_entries(changed),
        *kept_as_is,
    )
    if unstored:
        framework["unstored"] = unstored
    if found.layer_keys:
        framework["pipeline"] = {"layers": found.layer_keys}
    if found.expert_layers:
        framework["moe"] = {"layers": list(found.expert_layers)}
    steps = root.get("global_steps")
    training = Run(
        None if steps is None else steps.integer(),
        tuple(_param_groups(source, found, keeper)),
        state,
        framework,
    )
    return training, oddities


# Param groups.


def _param_groups(source: Source, found: Collected, keeper: Keeper) -> Iterable[Group]:
    """The groups of the run, each with the settings of the first pipeline stage that has it."""
    groups: dict[int, Node] = {}
    for stage, numbers in reversed(tuple(source.group_numbers.items())):
        nodes = group_nodes(source.shards, source.plain, stage * source.grid.tp)
        if nodes is None:  # elastic checkpoints have no hyper-parameters
            for _, own in sorted(found.groups.items()):
                yield Group({}, own)
            return
        groups.update(enumerate(nodes) if source.stage == 3 else zip(numbers, nodes, strict=True))
    for index, group in sorted(groups.items()):
        names: dict[str, None] = {}
        if source.stage == 3:
            for item in group.at("params").items():
                names.update(found.groups.get(item.integer(), {}))
        else:
            names.update(found.groups.get(index, {}))
        settings = {
            key: keeper.node_setting(item, f"param_groups.{index}.{key}")
            for key, item in group.entries()
            if key != "params"
        }
        yield Group(settings, names)


# Differences between ranks.


def _per_rank(source: Source, keeper: Keeper) -> tuple[dict[str, object], tuple[Changed, ...]]:
    """By file, what it says otherwise than the first rank's; and these entries by themselves."""
    out: dict[str, object] = {}
    entries: list[Changed] = []

    def compare(file: str, first: Mapping[str, Node], own: Mapping[str, Node], name: str) -> None:
        keys = differing(first, own)
        if keys:
            out[file] = {
                key: keeper.json(own[key], f"{name}.{key}") if key in own else {"$missing": True}
                for key in keys
            }
            entries.extend(Changed(file, key, first.get(key), own.get(key)) for key in keys)

    first = _told(source.first.root)
    for (dp, mp), model in source.models.items():
        if model is not source.first:
            compare(model.file, first, _told(model.root), f"rank.{dp}.{mp}")
    told = {rank: _optimizer_told(shard.optimizer) for rank, shard in source.shards.items()}
    for (dp, mp), own in told.items():
        alike = told[0, source.grid.stage(mp) * source.grid.tp]
        groups = {"param_groups": alike["param_groups"]} if "param_groups" in alike else {}
        name = f"optimizer.rank.{dp}.{mp}"
        compare(source.shards[dp, mp].file, {**told[0, 0], **groups}, own, name)
    return out, tuple(entries)


def _told(root: Node) -> dict[str, Node]:
    """Everything in a model file that is not about where tensors are."""
    return {key: node for key, node in root.entries() if key not in _STRUCTURE}


def _optimizer_told(optimizer: Node) -> dict[str, Node]:
    """Everything in an optimizer's state that is not about where tensors are."""
    out = {key: node for key, node in optimizer.entries() if key not in _PARTITIONS}
    for key in ("base_optimizer_state", "optimizer_state_dict"):
        base = optimizer.get(key)
        if base is not None and base.has("param_groups"):
            out["param_groups"] = base.at("param_groups")
    return out


# The rest.


def _optimizer(source: Source) -> Node | None:
    if source.shards:
        return source.shards[0, 0].optimizer
    plain = source.plain.get((0, 0))
    return None if plain is None else plain.root


def client_entries(root: Node) -> dict[str, Node]:
    """What the training script added."""
    known = {
        *_STRUCTURE,
        *_OTHER,
        *COUNTERS,
        "lr_scheduler",
        "ds_config",
        "universal_checkpoint_info",
    }
    return {key: node for key, node in root.entries() if key not in known}


def _rest(optimizer: Node) -> dict[str, Node]:
    """Entries of the optimizer's state that have no meaning here."""
    known = {*_PARTITIONS, *_STATE}
    return {key: node for key, node in optimizer.entries() if key not in known}


def _other_states(
    source: Source, found: Collected, keeper: Keeper
) -> tuple[dict[str, object], tuple[Diagnostic, ...]]:
    """States that are neither one number per element nor one per group, by file."""
    out: dict[str, object] = {}
    names: dict[str, None] = {}
    ranks = {shard.file: f"rank.{dp}.{mp}." for (dp, mp), shard in source.shards.items()}
    for file, own in found.kept.items():
        start = f"optimizer.{ranks.get(file, '')}"
        out[file] = {key: keeper.json(node, f"{start}{key}") for key, node in own.items()}
        names.update(dict.fromkeys(_state(key) for key in own))
    if not names:
        return out, ()
    return out, (
        Diagnostic(
            "kept-as-is",
            f"optimizer {_several(names)} of single ranks {_are(names)} kept as found",
            level="warning",
            notes=(
                *(_why(state, found.kept) for state in names),
                "only a run of the same size and partition can take them up again",
                f"first read from {next(iter(out))}",
            ),
        ),
    )


def _why(state: str, kept: Mapping[str, Mapping[str, Node]]) -> str:
    """Why a state is not cut anew, as its values show."""
    nodes = [node for own in kept.values() for key, node in own.items() if _state(key) == state]
    values = [node.value for node in nodes]
    numbers = [scalar_of(value, "") for value in values]
    if all(numbers):
        return f"`{state}` is one number, and ranks have different ones: {_shown(numbers)}"
    if all(isinstance(value, TensorRef) for value in values):
        shapes = dict.fromkeys(str(list(v.shape)) for v in values if isinstance(v, TensorRef))
        listed = ", ".join(list(shapes)[:4])
        return f"`{state}` does not have one number for each element: it has shape {listed}"
    return f"`{state}` is no tensor by itself"


def _state(key: str) -> str:
    return key.partition(".")[2]


def _shown(numbers: Iterable[object]) -> str:
    return ", ".join(list(dict.fromkeys(str(number) for number in numbers))[:4])


def _several(names: Mapping[str, None]) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return f"state {listed}" if len(names) == 1 else f"states {listed}"


def _are(names: Mapping[str, None]) -> str:
    return "is" if len(names) == 1 else "are"


def _module_rest(models: Iterable[ModelFile], keeper: Keeper) -> dict[str, object]:
    """By file, entries of a module's state that are no tensors."""
    out: dict[str, object] = {}
    for model in models:
        own = {name: keeper.json(node, f"module.{name}") for name, node in model.rest.items()}
        if own:
            out[model.file] = own
    return out


def _unstored(source: Source, found: Collected) -> list[str]:
    """Names that a module of stage 3 lists and no file holds: second names that nothing tells."""
    if source.stage != 3:
        return []
    known = {tensor.name for tensor in found.tensors} | set(found.aliases)
    return [name for name in source.first.module or {} if name not in known]


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


def kept(root: Node, key: str, keeper: Keeper) -> object:
    node = root.get(key)
    return None if node is None else keeper.json(node, key)


def setting(root: Node, key: str, keeper: Keeper) -> object:
    node = root.get(key)
    return None if node is None else keeper.node_setting(node, key)


def text_of(root: Node, key: str) -> str | None:
    node = root.get(key)
    return None if node is None else str(node.value)
