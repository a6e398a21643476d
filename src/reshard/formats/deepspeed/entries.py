"""What the entries of a model file, and of an optimizer's state in its file, are.

Source: DeepSpeed 0.19.8 runtime/engine.py `_save_checkpoint`; the state dicts of its optimizers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from reshard.formats.deepspeed.node import Node
from reshard.storage.kept import fingerprint

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""Entries of a model file that count."""
MODEL_PLACES = (
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
OTHER = (
    "data_sampler",
    "random_ltd",
    "num_experts",
    "ds_autoep_layers",
    "autoep_layers",
    "csr_tensor_module_names",
    "sparse_tensor_module_names",
)
"""Entries of a model file that go along as they are."""
SCALING = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
"""Entries of an optimizer's state that other frameworks have too."""
OPTIMIZER_PLACES = (
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


def client_entries(root: Node) -> dict[str, Node]:
    """What the training script added to a model file."""
    known = (*OTHER, *COUNTERS, "lr_scheduler", "ds_config", "universal_checkpoint_info")
    return without(root, (*MODEL_PLACES, *known))


def without(node: Node, known: Collection[str]) -> dict[str, Node]:
    """The other entries of a dict."""
    return {key: item for key, item in node.entries() if key not in known}


def differing(first: Mapping[str, Node], other: Mapping[str, Node]) -> list[str]:
    """Keys whose values are not equal, or that one side lacks."""
    out = []
    for key in dict.fromkeys((*first, *other)):
        a, b = first.get(key), other.get(key)
        if a is None or b is None or not _same(a.value, b.value):
            out.append(key)
    return out


def _same(first: object, second: object) -> bool:
    plain = (type(None), bool, int, float, str)
    if isinstance(first, plain) and isinstance(second, plain):
        return type(first) is type(second) and repr(first) == repr(second)
    return fingerprint(first) == fingerprint(second)
