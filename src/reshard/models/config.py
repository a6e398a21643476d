"""The `config.json` of a Hugging Face model: the source's own, or made of what is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.errors import Diagnostic, target_error
from reshard.language.expression import Expression, Variable, config_value, names, operands
from reshard.language.layout import Layout
from reshard.models.config_json import config_bytes, parse_config
from reshard.models.transformers import (
    ACTIVATIONS,
    FACTS,
    ROPE,
    Kind,
    is_harmless,
    is_said,
    kind_of,
    rope_of,
)
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.environment import flatten
from reshard.plan.fit import holds
from reshard.plan.framework_config import assign, framework_config
from reshard.plan.model_values import model_names
from reshard.storage.kept import decode

NAMES = "hf"
"""What the names of a model's layouts in Hugging Face's names begin with."""

_TORCH_NAMES = {DType.F64: "float64", DType.F32: "float32", DType.F16: "float16"} | {
    DType.BF16: "bfloat16"
}
_KEYS = ("dtype", "torch_dtype")
_BESIDE_SCALING = frozenset(("rope_theta", "partial_rotary_factor"))
"""What configurations say of rotary positions in one place with their scaling."""
_TIED = "tie_word_embeddings"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What is to be written.

    Args:  data: None if there is nothing to make it of.
    """

    data: bytes | None
    warnings: tuple[Diagnostic, ...] = ()


def has_hf_names(arrangement: Arrangement) -> bool:
    """Whether tensors are named as transformers names them, as far as a layout says so."""
    name = arrangement.layout.name
    return name in (NAMES, "vllm") or name.startswith(f"{NAMES}_")


def model_config(arrangement: Arrangement, weights: Iterable[Whole]) -> ModelConfig:
    """The configuration of a model whose tensors have transformers' names.

    Args:  weights: as they will be written.
    Raises: ReshardError[quantized-weights | source-unreadable].
    """
    weights = tuple(weights)
    catalog, layout = arrangement.catalog, arrangement.layout
    is_named = has_hf_names(arrangement) and layout.model is not None
    data = config_bytes(catalog)
    if data is not None and (is_named or layout.model is None):
        config = parse_config(data)
        if not is_named or config is None:
            return ModelConfig(_with_dtype(data, arrangement, weights))
        if _is_of(layout, config, arrangement.values):
            data, warnings = _brought_up(data, config, arrangement)
            return ModelConfig(_with_dtype(data, arrangement, weights), warnings)
    if is_named:
        return _made(arrangement, weights)
    return ModelConfig(None, (_absent(arrangement),))


def _is_of(layout: Layout, config: Mapping[str, object], values: Mapping[str, object]) -> bool:
    """Whether the names of a layout are those of the model that a configuration states."""
    return holds(layout.when, {**_meant(layout, config), **values}) is not False


def _meant(layout: Layout, config: Mapping[str, object]) -> dict[str, object]:
    """What a configuration says, by its own names and by those of the model."""
    env = flatten(config)
    for name, expression in layout.config.items():
        value = config_value(expression, env)
        if value is not None:
            env[name] = value
    return env


def _brought_up(
    data: bytes, config: Mapping[str, object], arrangement: Arrangement
) -> tuple[bytes, tuple[Diagnostic, ...]]:
    """The source's file; with other values where the checkpoint itself says otherwise."""
    layout, values = arrangement.layout, arrangement.values
    assert layout.model is not None
    kind = kind_of(config.get("model_type"))
    meaning = _meant(layout, config)
    else_said = _meant(layout, {**kind.default, **config} if kind else config)
    changed: dict[str, object] = {}
    notes = []
    expressions = dict(layout.config)
    for name in model_names(layout.model):
        is_unsaid_tie = name == _TIED and kind is not None and name in kind.default
        if name not in expressions and (name in config or is_unsaid_tie):
            expressions[name] = Variable(name)
    for name, expression in expressions.items():
        value = values.get(name)
        is_nothing = value is None and name in values and meaning.get(name) is not None
        if (value is None and not is_nothing) or not any(True for _ in names(expression)):
            continue
        old = meaning.get(name, else_said.get(name))
        if _is_same(old, value) or (old is None and value is False):
            continue
        assign(_place(expression, flatten(config)), value, changed)
        key = next(iter(names(expression)), name)
        is_said = meaning.get(name) is not None or name not in else_said
        how = "the file says" if is_said else "without it transformers takes"
        notes.append(f"`{key}`: {json.dumps(value)} is written, {how} {json.dumps(old)}")
    notes += _changed_facts(arrangement, config, kind, changed)
    if not changed:
        return data, ()
    new = json.loads(data)
    _merge(new, changed)
    warning = Diagnostic(
        "model-config-changed",
        "`config.json` and the checkpoint disagree",
        level="warning",
        notes=tuple(notes),
        helps=("the checkpoint's values are written; check which of the two is right",),
    )
    return _json(new), (warning,)


def _changed_facts(
    arrangement: Arrangement,
    config: Mapping[str, object],
    kind: Kind | None,
    changed: dict[str, object],
) -> list[str]:
    """Put facts of the source's framework that a file says otherwise among what is changed."""
    defaults = {k: v for k, v in kind.default.items() if k not in ROPE} if kind else {}
    whole = {**defaults, **config}
    notes = []
    for name, value in _facts(arrangement).items():
        if is_said(whole, name, value):
            continue
        key = next((key for key in ROPE if name in ROPE and key in config), _key_in(kind, name))
        old, new = config.get(key), value
        if name in ROPE:
            scaling = {"rope_type": "default", **(value if isinstance(value, Mapping) else {})}
            removed = (
                old.keys() - scaling.keys() - _BESIDE_SCALING if isinstance(old, Mapping) else ()
            )
            earlier = changed.get(key)
            base = earlier if isinstance(earlier, dict) else {}
            new = {**base, **scaling, **dict.fromkeys(removed)}
        changed[key] = new
        notes.append(f"`{key}`: {json.dumps(value)} is written, the file says {json.dumps(old)}")
    return notes


def _is_same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _place(expression: Expression, env: Mapping[str, object]) -> Expression:
    """Of `a or b`, the one that a configuration has; else the first."""
    parts = operands("or", expression)
    for part in parts:
        if isinstance(part, Variable) and env.get(part.name) is not None:
            return part
    return parts[0] if parts else expression


def _merge(into: dict[str, object], more: Mapping[str, object]) -> None:
    """Put values into a configuration; what is None in what is nested is taken out of it."""
    for key, value in more.items():
        inner = into.get(key)
        if isinstance(inner, dict) and isinstance(value, Mapping):
            _merge(inner, {name: item for name, item in value.items() if item is not None})
            for name in [name for name, item in value.items() if item is None]:
                inner.pop(name, None)
        else:
            into[key] = value


def _with_dtype(data: bytes, arrangement: Arrangement, weights: tuple[Whole, ...]) -> bytes:
    """The source's file; with another element type where the weights were converted."""
    name = _TORCH_NAMES.get(_main_dtype(weights))
    value = json.loads(data)
    assert isinstance(value, dict), "the reader of the source saw to that"
    came_back = arrangement.catalog.format not in (NAMES, "universal")
    is_other = came_back and name is not None and _stated_dtype(value) not in (None, name)
    if not is_other and not _are_converted(arrangement, weights):
        return data
    if "quantization_config" in value:
        raise target_error(
            "quantized-weights",
            "the weights are quantized, and cannot be converted to another element type",
            notes=["`config.json` has a `quantization_config`: other tensors hold their scales"],
            helps=["leave `--dtype` out; they are copied as they are"],
        )
    keys = [key for key in _KEYS if key in value] or ["torch_dtype"]
    value.update({key: name for key in keys if name is not None})
    return _json(value)


def _stated_dtype(config: Mapping[str, object]) -> object:
    return next((config[key] for key in _KEYS if config.get(key) is not None), None)


def _made(arrangement: Arrangement, weights: tuple[Whole, ...]) -> ModelConfig:
    layout, values = arrangement.layout, arrangement.values
    assert layout.model is not None
    facts = {key: value for key, value in _facts(arrangement).items() if value is not None}
    new_config = framework_config(layout, values, lambda config: _has_keys(config, facts))
    kind = kind_of(new_config.get("model_type"))
    if "model_type" not in new_config:
        return ModelConfig(None, (_absent(arrangement),))
    for name in dict.fromkeys(model_names(layout.model)):
        if name in layout.config or values.get(name) is None:
            continue
        if kind is None or name in kind.default:
            new_config.setdefault(name, values[name])
    if not _has_keys(new_config, facts):
        raise _no_key(str(new_config["model_type"]), kind, facts)
    new_config.update({_key_in(kind, name): value for name, value in facts.items()})
    dtype = _TORCH_NAMES.get(_main_dtype(weights))
    if dtype is not None:
        new_config["torch_dtype"] = dtype
    if kind is not None:
        _complete(kind, new_config)
    missing = _missing(arrangement, kind, new_config)
    ordered = {
        **({"architectures": [kind.architecture]} if kind and kind.architecture else {}),
        "model_type": new_config.pop("model_type"),
        **dict(sorted(new_config.items())),
    }
    # Some ways to scale rotary positions begin where the trained positions end.
    is_scaled = rope_of(new_config).get("rope_type", "default") != "default"
    unknown = [key for key in missing if kind is None or is_scaled or not is_harmless(key)]
    warnings = [_unknown(unknown)] if unknown else []
    if len(unknown) < len(missing):
        warnings.append(_defaulted([key for key in missing if key not in unknown]))
    return ModelConfig(_json(decode(ordered, lambda tensor: tensor)), tuple(warnings))


def _facts(arrangement: Arrangement) -> Mapping[str, object]:
    """What the source's framework says of the model beyond its sizes."""
    facts = (arrangement.catalog.config or {}).get(FACTS)
    return facts if isinstance(facts, Mapping) else {}


def _has_keys(config: Mapping[str, object], facts: Mapping[str, object]) -> bool:
    """Whether the type that a configuration states has a key for every fact."""
    kind = kind_of(config.get("model_type"))
    return kind is None or all(_has_key(kind, name) for name in facts)


def _has_key(kind: Kind, name: str) -> bool:
    others = next((names for names in (ROPE, ACTIVATIONS) if name in names), ())
    return any(key in kind.default for key in (name, *others))


def _key_in(kind: Kind | None, name: str) -> str:
    """What a type calls a fact."""
    if kind is not None and name in ACTIVATIONS:
        return next((key for key in ACTIVATIONS if key in kind.default), name)
    return name


def _no_key(model_type: str, kind: Kind | None, facts: Mapping[str, object]) -> Exception:
    losses = {k: v for k, v in facts.items() if kind is not None and not _has_key(kind, k)}
    return target_error(
        "other-facts",
        f"transformers' `{model_type}` cannot compute what this model computes",
        notes=[
            f"it has no `{key}`, which is {json.dumps(value)} here" for key, value in losses.items()
        ],
        helps=["convert to `universal`, which keeps the arguments, or change the run's arguments"],
    )


def _missing(arrangement: Arrangement, kind: Kind | None, config: dict[str, object]) -> list[str]:
    """Keys that the source does not tell; of a size that the model goes without, `null` is told."""
    without = _sizes_of_nothing(arrangement)
    missing = []
    for name, expression in arrangement.layout.config.items():
        if arrangement.values.get(name) is not None:
            continue
        key = next(iter(names(expression)), name)
        if key in config:
            continue
        if name in arrangement.values or key in arrangement.values:
            assign(_place(expression, {}), None, config)  # the user states that it has no value
        elif name not in without or "." in key:
            missing.append(key)
        elif kind is None or key in kind.nullable:
            config[key] = None  # transformers' own way to say that a model goes without
    return missing + [key for key in sorted(kind.own) if key not in config] if kind else missing


def _complete(kind: Kind, config: dict[str, object]) -> None:
    """Say what the type would otherwise take another value for."""
    for key, value in kind.plain.items():
        if key in kind.default:
            config.setdefault(key, value)
    if config.get("sliding_window") and "use_sliding_window" in kind.default:
        config.update(use_sliding_window=True, max_window_layers=0)
    if "num_key_value_heads" in kind.default and "num_attention_heads" in config:
        config.setdefault("num_key_value_heads", config["num_attention_heads"])


def _sizes_of_nothing(arrangement: Arrangement) -> set[str]:
    """Names of sizes that no tensor of this model has: `q_lora_rank` where queries have no such."""
    model = arrangement.layout.model
    assert model is not None
    used = {axis for atom in arrangement.atoms.values() for axis in atom.axes}
    return {
        axis.size.name
        for axis in model.axes.values()
        if axis.name not in used and isinstance(axis.size, Variable)
    }


def _are_converted(arrangement: Arrangement, weights: Iterable[Whole]) -> bool:
    """Whether some of the weights are stored in another type than they are written in."""
    pairs = {(key, whole.state, whole.dtype) for whole in weights for key, _ in whole.segments}
    return any(
        part.dtype != dtype
        for key, state, dtype in pairs
        for part in arrangement.parts.get((key, state), ())
    )


def _main_dtype(weights: Iterable[Whole]) -> DType:
    """The element type of most elements."""
    counts: dict[DType, int] = {}
    for whole in weights:
        size = 1
        for length in whole.shape:
            size *= length
        counts[whole.dtype] = counts.get(whole.dtype, 0) + size
    return max(counts, key=lambda dtype: counts[dtype], default=DType.F32)


def _absent(arrangement: Arrangement) -> Diagnostic:
    layout = arrangement.layout
    if layout.model is None:
        why = f"the source has none, and layout `{layout.name}` states no model"
    else:
        why = f"the source has none, and layout `{layout.name}` does not state its `model_type`"
    return Diagnostic(
        "no-model-config",
        "no `config.json` is written",
        level="warning",
        notes=(why,),
        helps=("put that of the model into the folder; transformers cannot load without it",),
    )


def _unknown(missing: Iterable[str]) -> Diagnostic:
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(missing))
    return Diagnostic(
        "incomplete-model-config",
        "`config.json` is incomplete, and the source does not record the missing values",
        level="warning",
        notes=(f"without a value: {names}", "transformers takes its own defaults for them"),
        helps=("look them up in the configuration of the run, and write them into the file",),
    )


def _defaulted(missing: Iterable[str]) -> Diagnostic:
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(missing))
    return Diagnostic(
        "defaulted-model-config",
        "`config.json` leaves to transformers what the source does not record",
        level="warning",
        notes=(f"without a value: {names}", "it changes no number that the model computes"),
        helps=("state it, like `--set max_position_embeddings=4096`, if other programs read it",),
    )


def _json(value: Mapping[str, object] | object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
