"""What a universal folder knows besides tensors."""

from __future__ import annotations

from collections.abc import Iterator

from reshard.formats.deepspeed.keeper import Keeper
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.training import COUNTERS, client_entries, kept, setting, text_of
from reshard.formats.deepspeed.universal_form.folder import UniversalFolder
from reshard.formats.deepspeed.weights import compute_dtype
from reshard.run.run import Group, Run

_SCALING = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")


def read_training(folder: UniversalFolder, keeper: Keeper) -> Run:
    """Counters, schedules, hyper-parameters, and client state."""
    root = folder.models[0].root
    state: dict[str, object] = {}
    if root.has("lr_scheduler"):
        state["lr_scheduler"] = setting(root, "lr_scheduler", keeper)
    for key in _SCALING:
        if folder.optimizer is not None and folder.optimizer.has(key):
            state[key] = setting(folder.optimizer, key, keeper)
    dtype = compute_dtype(folder.models)
    framework: dict[str, object] = {
        "name": "deepspeed",
        "version": text_of(root, "ds_version"),
        "compute_dtype": None if dtype is None else dtype.value,
        "ds_config": kept(root, "ds_config", keeper),
        "counters": {key: kept(root, key, keeper) for key in COUNTERS if root.has(key)},
        "client_state": {
            key: keeper.json(node, f"client_state.{key}")
            for key, node in client_entries(root).items()
        },
        "buffer_names": list(folder.models[0].buffer_names),
    }
    steps = root.get("global_steps")
    groups = tuple(_param_groups(folder, keeper))
    return Run(None if steps is None else steps.integer(), groups, state, framework)


def _param_groups(folder: UniversalFolder, keeper: Keeper) -> Iterator[Group]:
    """Hyper-parameters per param group; whose parameters only the source's `param_shapes` tell."""
    found = None if folder.optimizer is None else folder.optimizer.get("param_groups")
    nodes: list[Node] = [] if found is None else list(found.items())
    shapes = folder.models[0].param_shapes or ()
    for index, group in enumerate(nodes):
        settings = {
            key: keeper.node_setting(item, f"param_groups.{index}.{key}")
            for key, item in group.entries()
            if key != "params"
        }
        names = list(shapes[index]) if len(shapes) == len(nodes) else []
        yield Group(settings, names)
