"""What a checkpoint knows besides tensors: counters, schedules, hyper-parameters, client state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reshard.errors import Diagnostic
from reshard.formats.deepspeed.collect import Collected
from reshard.formats.deepspeed.keeper import Keeper, differing
from reshard.formats.deepspeed.model_file import ModelFile
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.source import Source
from reshard.formats.deepspeed.weights import compute_dtype
from reshard.plan.catalog import Training
from reshard.storage.objects import to_json
from reshard.storage.small_tensors import small_tensor
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
) -> tuple[Training, tuple[Diagnostic, ...]]:
    """The state of training, and warnings about what is kept without being understood."""
    first = source.first
    root = first.root
    optimizer = _optimizer(source)
    state: dict[str, object] = {}
    if root.has("lr_scheduler"):
        state["lr_scheduler"] = kept(root, "lr_scheduler", keeper)
    for key in _STATE:
        if optimizer is not None and optimizer.has(key):
            state[key] = kept(optimizer, key, keeper)
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
        "per_rank": _per_rank(source, keeper),
    }
    if optimizer is not None:
        rest = _rest(optimizer)
        if rest:
            framework["optimizer_other"] = {
                key: keeper.json(node, f"optimizer.{key}") for key, node in rest.items()
            }
    kept_states, oddities = _other_states(source, keeper)
    if kept_states:
        framework["optimizer_states"] = kept_states
    module = _module_rest(source.models.values(), keeper)
    if module:
        framework["module_other"] = module
    unstored = _unstored(source, found)
    if unstored:
        framework["unstored"] = unstored
    if found.layer_keys:
        framework["pipeline"] = {"layers": found.layer_keys}
    if found.expert_layers:
        framework["moe"] = {"layers": list(found.expert_layers)}
    steps = root.get("global_steps")
    training = Training(
        None if steps is None else steps.integer(),
        tuple(_param_groups(source, found, keeper)),
        state,
        framework,
    )
    return training, oddities


# Param groups.


def _param_groups(
    source: Source, found: Collected, keeper: Keeper
) -> Iterable[Mapping[str, object]]:
    groups = _group_nodes(source)
    if groups is None:  # elastic checkpoints have no hyper-parameters
        for _, own in sorted(found.groups.items()):
            yield {"params": list(own)}
        return
    for index, group in enumerate(groups):
        names: dict[str, None] = {}
        if source.stage == 3:
            for item in group.at("params").items():
                names.update(found.groups.get(item.integer(), {}))
        else:
            names.update(found.groups.get(index, {}))
        settings = {
            key: to_json(item.value, small_tensor)
            for key, item in group.entries()
            if key != "params"
        }
        yield {**settings, "params": list(names)}


def _group_nodes(source: Source) -> list[Node] | None:
    """Param groups of the first rank's optimizer; None where it does not tell them."""
    if source.shards:
        shard = source.shards[0, 0]
        key = "optimizer_state_dict" if shard.stage == 3 else "base_optimizer_state"
        base = shard.optimizer.at(key)
        return None if isinstance(base.value, list) else _groups_of(base)
    plain = source.plain.get((0, 0))
    return [] if plain is None else _groups_of(plain.inner)


def _groups_of(base: Node) -> list[Node]:
    return list(base.at("param_groups").items())


# Differences between ranks.


def _per_rank(source: Source, keeper: Keeper) -> dict[str, object]:
    """By file, what it says otherwise than the first rank's."""
    out: dict[str, object] = {}
    first = _told(source.first.root)
    for rank, model in source.models.items():
        if model is source.first:
            continue
        own = _told(model.root)
        changed = _changes(first, own, keeper, f"rank.{rank[0]}.{rank[1]}")
        if changed:
            out[model.file] = changed
    if source.shards:
        first = _optimizer_told(source.shards[0, 0].optimizer)
        for rank, shard in source.shards.items():
            own = _optimizer_told(shard.optimizer)
            changed = _changes(first, own, keeper, f"optimizer.rank.{rank[0]}.{rank[1]}")
            if changed:
                out[shard.file] = changed
    return out


def _changes(
    first: Mapping[str, Node], own: Mapping[str, Node], keeper: Keeper, name: str
) -> dict[str, object]:
    return {
        key: keeper.json(own[key], f"{name}.{key}") if key in own else {"$missing": True}
        for key in differing(first, own)
    }


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
    source: Source, keeper: Keeper
) -> tuple[dict[str, object], tuple[Diagnostic, ...]]:
    """States that are neither one number per element nor one per group, by file."""
    out: dict[str, object] = {}
    names: dict[str, None] = {}
    for rank, shard in source.shards.items():
        own: dict[str, object] = {}
        for index, group in enumerate(shard.groups):
            for key, node in group.other.items():
                if node.is_none:
                    continue
                label = f"{index}.{key}"
                own[label] = keeper.json(node, f"optimizer.rank.{rank[0]}.{rank[1]}.{label}")
                names[key] = None
        if own:
            out[shard.file] = own
    if not names:
        return out, ()
    return out, (
        Diagnostic(
            "kept-as-is",
            f"optimizer {_several(names)} cannot be cut anew, and {_are(names)} kept as found",
            level="warning",
            notes=(
                "a state of a flat group has one number for each element, or one for all",
                f"first read from {next(iter(out))}",
            ),
        ),
    )


def _several(names: Mapping[str, None]) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return f"state {listed}" if len(names) == 1 else f"states {listed}"


def _are(names: Mapping[str, None]) -> str:
    return "is" if len(names) == 1 else "are"


def _module_rest(models: Iterable[ModelFile], keeper: Keeper) -> dict[str, object]:
    """By file, entries of a module's state that are no tensors."""
    out: dict[str, object] = {}
    for model in models:
        module = model.root.get("module")
        own = {
            name: keeper.json(node, f"module.{name}")
            for name, node in (() if module is None else module.entries())
            if not isinstance(node.value, TensorRef)
        }
        if own:
            out[model.file] = own
    return out


def _unstored(source: Source, found: Collected) -> list[str]:
    """Names that a module of stage 3 lists and no file holds: second names that nothing tells."""
    if source.stage != 3:
        return []
    known = {tensor.name for tensor in found.tensors} | set(found.aliases)
    return [name for name in source.first.module or {} if name not in known]


def kept(root: Node, key: str, keeper: Keeper) -> object:
    node = root.get(key)
    return None if node is None else keeper.json(node, key)


def text_of(root: Node, key: str) -> str | None:
    node = root.get(key)
    return None if node is None else str(node.value)
