"""What the file of every rank says of the run, and must say alike: arguments, schedule, groups.

Source: Megatron-LM, megatron/training/checkpointing.py `generate_state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping

from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.groups import RUNTIME, optimizers_in
from reshard.storage.torch_file import TensorRef, read_small

_OF_ONE_RANK = ("rank", "local_rank", "node_rank", "global_rank", "device", "local_world_size")
_KEYS = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr", "default_config")
"""What tells one param group from another."""


def settings_of(root: Mapping[object, object], args: Arguments) -> dict[str, object]:
    """Every plain value of a rank's file that all ranks have in common, by what it is called."""
    out: dict[str, object] = {
        name: value
        for name, value in args.values.items()
        if name not in _OF_ONE_RANK and _is_common(value)
    }
    for key in ("opt_param_scheduler", "lr_scheduler"):
        out |= _flat(f"{key}.", root.get(key))
    groups: dict[str, list[dict[str, object]]] = {}
    for optimizer in optimizers_in(root.get("optimizer")):
        if not isinstance(optimizer, Mapping):
            continue
        out |= _flat("grad_scaler.", optimizer.get("grad_scaler"))
        inner = optimizer.get("optimizer", optimizer)
        listed = inner.get("param_groups") if isinstance(inner, Mapping) else None
        for group in listed if isinstance(listed, list) else []:
            if isinstance(group, Mapping):
                label = ", ".join(f"{key}={group[key]}" for key in _KEYS if key in group)
                own = {k: v for k, v in group.items() if k not in RUNTIME}
                groups.setdefault(label, []).append(_flat("", own))
    for label, found in groups.items():
        if len(found) == 1:
            out |= {f"{key} of the param group with {label}": v for key, v in found[0].items()}
    return out


def differences(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """The settings that both have, and that are not the same."""
    return [
        name
        for name, value in one.items()
        if name in other and repr(value) != repr(other[name])  # NaN is like NaN
    ]


def _is_common(value: object) -> bool:
    """Whether a value is plain and not a place, which nodes may have of their own."""
    if isinstance(value, str):
        return not {"/", ":"} & set(value)
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (int, float, bool)) for item in value)
    return value is None or isinstance(value, (int, float, bool))


def _flat(prefix: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {}
    out: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, TensorRef):
            if item.numel == 1:
                out[f"{prefix}{key}"] = read_small(item)
        elif _is_common(item):
            out[f"{prefix}{key}"] = item
    return out
