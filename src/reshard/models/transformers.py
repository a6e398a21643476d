"""Which keys of transformers' configurations a model type has, and which change nothing.

The facts are in `layouts/transformers.json`; `tests/interop/transformers_keys.py` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

FACTS = "transformers"
"""The key of a source's configuration under which facts of the model are in transformers' words."""
ROPE = ("rope_parameters", "rope_scaling")
ACTIVATIONS = ("hidden_act", "activation_function")
WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh")
EXACT_GELU = ("gelu", "gelu_python")
_PLAIN_ROPE: Mapping[str, object] = {
    "rope_type": "default",
    "type": "default",
    "partial_rotary_factor": 1.0,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A model type of transformers.

    Args:  architecture: the class that loads it; "" where its tensors decide.
           default: every key that may change what it computes, as it is where it is not said.
           nullable: keys that may be `null`.  derived: keys that follow from others.
           plain: as the frameworks that train such models have it, where that is another value.
           own: keys that none of these frameworks knows; only the configuration tells their values.
    """

    architecture: str
    default: Mapping[str, object]
    plain: Mapping[str, object]
    nullable: frozenset[str] = frozenset()
    derived: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()


@cache
def _table() -> Mapping[str, object]:
    text = resources.files("reshard").joinpath("layouts", "transformers.json").read_text("utf-8")
    table = json.loads(text)
    assert isinstance(table, dict)
    return table


@cache
def kind_of(model_type: object) -> Kind | None:
    """What is known of a type; None for one that no shipped layout is of."""
    types = _table()["types"]
    assert isinstance(types, dict)
    entry = types.get(model_type)
    if entry is None:
        return None
    return Kind(
        entry.get("architecture", ""),
        entry["default"],
        entry.get("plain", {}),
        frozenset(entry.get("nullable", ())),
        frozenset(entry.get("derived", ())),
        frozenset(entry.get("own", ())),
    )


def is_text(key: str) -> bool:
    """Whether the value of a key is text, in the types that have it."""
    types = _table()["types"]
    assert isinstance(types, dict)
    return any(isinstance(item["default"].get(key), str) for item in types.values())


def config_keys() -> frozenset[str]:
    """Every key of every type that is known."""
    types = _table()["types"]
    assert isinstance(types, dict)
    return frozenset((*_harmless(), *(key for item in types.values() for key in item["default"])))


def type_of_architecture(name: str) -> str | None:
    """The type that a class of transformers is of."""
    types = _table()["types"]
    assert isinstance(types, dict)
    return next((kind for kind, item in types.items() if item.get("architecture") == name), None)


def is_harmless(key: str) -> bool:
    """Whether a key changes nothing that a model computes, whatever its value."""
    return key in _harmless()


@cache
def _harmless() -> frozenset[str]:
    keys = _table()["harmless"]
    assert isinstance(keys, list)
    return frozenset(keys)


def rope_of(config: Mapping[str, object]) -> dict[str, object]:
    """The scaling of rotary positions, in either spelling; {} where there is none."""
    for key in ROPE:
        value = config.get(key)
        if isinstance(value, Mapping):
            out = dict(value)
            out["rope_type"] = out.pop("type", None) or out.get("rope_type") or "default"
            return out
    return {}


def activation_of(config: Mapping[str, object]) -> tuple[str, object] | None:
    """What a model computes between its linear layers, and the key that says so.

    The default of its type where it is not said; None where nothing tells.
    """
    kind = kind_of(config.get("model_type"))
    for settings in (config, kind.default if kind else {}):
        for key in ACTIVATIONS:
            if settings.get(key) and (kind is None or key in kind.default):
                return key, settings[key]
    return None


def is_activation(one: object, other: object) -> bool:
    """Whether two names are of one function."""
    return one == other or any(one in kin and other in kin for kin in (TANH_GELU, EXACT_GELU))


_ROPE_DEFAULTS: Mapping[str, object] = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


def is_said(config: Mapping[str, object], name: str, value: object) -> bool:
    """Whether a configuration says a fact, in whatever spelling.

    Args:  config: with the defaults of its type.  value: of the fact.
    """
    if name in ROPE:
        length = config.get("max_position_embeddings")
        scaling = _plain_scaling(rope_of(config), length)
        return scaling == _plain_scaling(value if isinstance(value, Mapping) else {}, length)
    if name == "sliding_window":
        return window_of(config) == value
    if name in ACTIVATIONS:
        activation = activation_of(config)
        return activation is not None and is_activation(activation[1], value)
    return _alike(config.get(name), value)


def _plain_scaling(rope: Mapping[str, object], length: object) -> dict[str, object]:
    """A scaling of positions without what is as by default.

    Args:  length: how many positions the model has.
    """
    defaults = {**_ROPE_DEFAULTS, "original_max_position_embeddings": length}
    if rope.get("rope_type", "default") == "default":
        return {}
    return {
        key: value
        for key, value in rope.items()
        if key not in ("rope_theta", "partial_rotary_factor")
        and value is not None
        and value != defaults.get(key)
    }


def window_of(config: Mapping[str, object]) -> int | None:
    """The sliding window of all layers; 0 where only some have one; None without one."""
    kind = kind_of(config.get("model_type"))
    if kind is not None and "sliding_window" not in kind.default:
        return None  # the class of such a model does not read the key
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    if not isinstance(window, int) or window <= 0 or config.get("use_sliding_window") is False:
        window = None
    if isinstance(kinds, list):
        sliding = [kind == "sliding_attention" for kind in kinds]
        if not any(sliding):
            return None
        return window if all(sliding) and window is not None else 0
    if window is None:
        return None
    return 0 if config.get("use_sliding_window") and config.get("max_window_layers") else window


def changing_keys(config: Mapping[str, object], used: Collection[str]) -> dict[str, object]:
    """What of a configuration may make the model compute other numbers than its family does.

    Args:  config: in transformers' words.
           used: names that are accounted for; of what is nested, with dots.
    """
    kind = kind_of(config.get("model_type")) or Kind("", {}, {})
    out: dict[str, object] = {}
    for key, value in config.items():
        if value is None or key in used or key in _harmless() or key in kind.derived:
            continue
        if key in ROPE:
            changes = not isinstance(value, Mapping) or any(
                f"{key}.{name}" not in used and item != _PLAIN_ROPE.get(name)
                for name, item in value.items()
            )
        elif key == "layer_types":
            is_read = not kind.default or "sliding_window" in kind.default
            changes = is_read and _is_mixed(value)
        elif key in WINDOW:
            changes = key == "sliding_window" and window_of(config) is not None
        elif isinstance(value, Mapping) and (inner := _inside(key, used)):
            default = kind.default.get(key)
            usual = default if isinstance(default, Mapping) else {}
            for name, item in changing_keys(value, inner).items():
                if name not in usual or not _alike(item, usual[name]):
                    out[f"{key}.{name}"] = item
            continue
        else:
            plain = kind.plain.get(key, kind.default.get(key))
            changes = key in kind.own or not (_alike(value, plain) or (plain is None and not value))
        if changes:
            out[key] = value
    return out


def _inside(key: str, used: Collection[str]) -> set[str]:
    """The names that are accounted for inside a group of settings."""
    return {name.removeprefix(f"{key}.") for name in used if name.startswith(f"{key}.")}


def _is_mixed(kinds: object) -> bool:
    """Whether layers attend to different things; the window says it where they are alike."""
    uniform = ("full_attention", "sliding_attention")
    return not isinstance(kinds, list) or not any(
        all(item == kind for item in kinds) for kind in uniform
    )


def _alike(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)
