"""The model of a checkpoint without Megatron's arguments, as the files next to it describe it.

Megatron-Bridge and NeMo save the configuration of the model, in the words of Megatron-core's
TransformerConfig; a layout wants Megatron's arguments.

Source: Megatron-Bridge training/config.py and training/utils/checkpoint_utils.py; NeMo
lightning/io/mixin.py; megatron/training/arguments.py `core_transformer_config_from_args`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from reshard.storage.bounded_json import load_bounded
from reshard.storage.yaml_file import load_yaml
from reshard.store.regular_file import read_regular

_MAX_NBYTES = 16 << 20
_FILES = (
    ("run_config.yaml", "model"),
    ("../context/model.yaml", "config"),
    ("../context/io.json", "model.config"),
    ("../context/io.json", "config"),
    ("../model_config.yaml", ""),
    ("model_config.yaml", ""),
    ("transformer_config.json", ""),
    ("../transformer_config.json", ""),
)
"""From the folder of the tensors, and the section in which the model is."""
_OBJECTS = "io.json"
"""Objects that Fiddle wrote; a section is a path from the root of them."""
_ARGUMENT = re.compile(r"\bname='(\w+)'")

_OTHER_NAMES = {
    "layernorm_epsilon": "norm_epsilon",
    "num_moe_experts": "num_experts",
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
    "rope_scaling": "use_rope_scaling",
    "seq_length": "max_position_embeddings",
}
_WANTED = ("num_layers", "hidden_size")


def arguments_beside(folder: Path) -> tuple[dict[str, object], str]:
    """Megatron's arguments as far as a configuration beside the tensors tells them, and its path;
    none, and no path, without one.
    """
    for name, section in _FILES:
        model = _section(folder / name, section)
        if model is not None and all(isinstance(model.get(key), int) for key in _WANTED):
            return dict(_arguments(model)), str(folder / name)
    return {}, ""


def _section(path: Path, section: str) -> Mapping[str, object] | None:
    try:
        data = read_regular(path, _MAX_NBYTES)
        value = load_bounded(data) if path.suffix == ".json" else load_yaml(data)
    except (OSError, ValueError):
        return None
    if path.name == _OBJECTS:
        return _fiddled(value, section)
    model = value.get(section) if section and isinstance(value, dict) else value
    return model if isinstance(model, dict) else None


def _fiddled(value: object, section: str) -> Mapping[str, object] | None:
    """The arguments of the one object that is at a path, as far as they are plain values.

    Source: fiddle/_src/experimental/serialization.py.
    """
    objects = value.get("objects") if isinstance(value, dict) else None
    if not isinstance(objects, dict):
        return None
    for item in objects.values():
        paths = item.get("paths") if isinstance(item, dict) else None
        if isinstance(paths, list) and f"<root>.{section}" in paths:
            items = item.get("items")
            pairs = items if isinstance(items, list) else []
            return {name: plain for name, plain in map(_argument, pairs) if name}
    return None


def _argument(pair: object) -> tuple[str, object]:
    """The name and the value of an argument; a function by its name."""
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], dict):
        return "", None
    name = _ARGUMENT.search(str(pair[0]))
    value = pair[1]
    plain = value.get("value") if value.get("type") == "leaf" else None
    if value.get("type") == "pyref":
        plain = f"{value.get('module')}.{value.get('name')}"
    return name[1] if name else "", plain


def _arguments(model: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in model.items():
        if isinstance(value, int | float | str | bool) and not str(key).startswith("_"):
            yield _OTHER_NAMES.get(str(key), str(key)), value
    if "share_embeddings_and_output_weights" in model:
        shared = model["share_embeddings_and_output_weights"]
        yield "untie_embeddings_and_output_weights", not shared
    if isinstance(model.get("num_query_groups"), int):
        yield "group_query_attention", True
    if "gated_linear_unit" in model:
        gated, function = model["gated_linear_unit"], str(model.get("activation_func") or "silu")
        yield "swiglu", bool(gated) and ("silu" in function or "swish" in function)
