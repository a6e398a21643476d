"""The `config.json` of a Hugging Face model: the source's own, or made of what is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.errors import Diagnostic, target_error
from reshard.formats.model_json import is_model_config
from reshard.language.expression import Variable, names
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.framework_config import framework_config
from reshard.plan.model_values import model_names
from reshard.storage.objects import from_json
from reshard.storage.side_files import read_side_files

CONFIG = "config.json"
NAMES = "hf"
"""What the names of a model's layouts in Hugging Face's names begin with."""

_TORCH_NAMES = {DType.F64: "float64", DType.F32: "float32", DType.F16: "float16"} | {
    DType.BF16: "bfloat16"
}
_KEYS = ("dtype", "torch_dtype")


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
    return name == NAMES or name.startswith(f"{NAMES}_")


def model_config(arrangement: Arrangement, weights: Iterable[Whole]) -> ModelConfig:
    """The configuration of a model whose tensors have transformers' names.

    Args:  weights: as they will be written.
    Raises: ReshardError[quantized-weights | source-unreadable].
    """
    weights = tuple(weights)
    catalog = arrangement.catalog
    if CONFIG in catalog.side_files:
        data = read_side_files(catalog, (CONFIG,))[CONFIG]
        if is_model_config(json.loads(data)):
            return ModelConfig(_with_dtype(data, arrangement, weights))
    if has_hf_names(arrangement) and arrangement.layout.model is not None:
        return _made(arrangement, weights)
    return ModelConfig(None, (_absent(arrangement),))


def _with_dtype(data: bytes, arrangement: Arrangement, weights: tuple[Whole, ...]) -> bytes:
    """The source's file; with another element type where the weights were converted."""
    if not any(_is_converted(arrangement, whole) for whole in weights):
        return data
    value = json.loads(data)
    assert isinstance(value, dict), "the reader of the source saw to that"
    if "quantization_config" in value:
        raise target_error(
            "quantized-weights",
            "the weights are quantized, and cannot be converted to another element type",
            notes=["`config.json` has a `quantization_config`: other tensors hold their scales"],
            helps=["leave `--dtype` out; they are copied as they are"],
        )
    name = _TORCH_NAMES.get(_main_dtype(weights))
    stated = [key for key in _KEYS if key in value] or ["torch_dtype"]
    value.update({key: name for key in stated if name is not None})
    return _json(value)


def _made(arrangement: Arrangement, weights: tuple[Whole, ...]) -> ModelConfig:
    layout, values = arrangement.layout, arrangement.values
    assert layout.model is not None
    told = framework_config(layout, values)
    for name in dict.fromkeys(model_names(layout.model)):
        if name not in layout.config and values.get(name) is not None:
            told.setdefault(name, values[name])
    if "model_type" not in told:
        return ModelConfig(None, (_absent(arrangement),))
    dtype = _TORCH_NAMES.get(_main_dtype(weights))
    if dtype is not None:
        told["torch_dtype"] = dtype
    without = _sizes_of_nothing(arrangement)
    missing = []
    for name, expression in layout.config.items():
        if values.get(name) is None:
            key = next(iter(names(expression)), name)
            if name in without and "." not in key:
                told[key] = None  # transformers' own way to say that a model goes without
            else:
                missing.append(key)
    ordered = {"model_type": told.pop("model_type"), **dict(sorted(told.items()))}
    warnings = (_unknown(missing),) if missing else ()
    return ModelConfig(_json(from_json(ordered, lambda tensor: tensor)), warnings)


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


def _is_converted(arrangement: Arrangement, whole: Whole) -> bool:
    return any(
        part.dtype != whole.dtype
        for key, _ in whole.segments
        for part in arrangement.parts.get((key, whole.state), ())
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
        why = f"the source has none, and layout `{layout.name}` says nothing of the model"
    else:
        why = f"the source has none, and layout `{layout.name}` does not say its `model_type`"
    return Diagnostic(
        "no-model-config",
        "no `config.json` is written",
        level="warning",
        notes=(why,),
        helps=("put that of the model into the folder; transformers cannot load without it",),
    )


def _unknown(missing: Iterable[str]) -> Diagnostic:
    listed = ", ".join(f"`{name}`" for name in dict.fromkeys(missing))
    return Diagnostic(
        "incomplete-model-config",
        "`config.json` does not say all that the source does not tell either",
        level="warning",
        notes=(f"without a value: {listed}", "transformers takes its own defaults for them"),
        helps=("look them up in the configuration of the run, and write them into the file",),
    )


def _json(value: Mapping[str, object] | object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
