"""When a source's own names are those of a target, although no layout names its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from reshard.errors import Diagnostic, ReshardError, target_error
from reshard.language.layout import Layout
from reshard.language.library import Family
from reshard.models.adapters import CONFIG, Adapter, adapter_of
from reshard.models.name_forms import with_prefixes
from reshard.models.nearest import Near, block_scales, nearest, stated_layouts
from reshard.plan.catalog import Catalog
from reshard.plan.names import group_names
from reshard.plan.stored_names import StoredNames
from reshard.run.states import EXTRA

Keep = Literal["never", "established", "always"]
"""Whether a source keeps its names where no layout names its tensors: only where they are shown to
be the target's, or always."""

Named = Literal["layout", "config", "source"]

SOURCE = "source"
"""What `--names` takes to keep the source's names on purpose."""

_HF = "hf"
_CAUSAL = re.compile("ForCausalLM|LMHead")


def is_named(layout: Layout, names: str | None) -> bool:
    """Whether a layout has the names that are asked for."""
    return names is not None and (layout.name == names or layout.name.startswith(f"{names}_"))


def are_own_names(catalog: Catalog, names: str | None, families: Sequence[Family]) -> bool:
    """Whether a source that no layout fits has the names that its own configuration promises.

    That is so for transformers alone: it loads a folder by the `model_type` of its `config.json`,
    leaves tensors alone that it has no use for, and makes a prefix good.  A folder of a model that
    reshard knows must have every tensor of it; a checkpoint of another model must come from a
    folder of transformers, its names unchanged, or agree with the sizes in its configuration.
    """
    config = catalog.config or {}
    if adapter_of(catalog) is not None:
        return names == _HF
    if names != _HF or not isinstance(config.get("model_type"), str):
        return False
    if _has_unread_scales(catalog, config):
        return False
    near = _nearest_form(catalog, families)
    if near is not None and near.is_stated:
        return not near.missing or _has_all(near, config)
    return catalog.names_of == _HF or _sizes_agree(catalog, config)


def _nearest_form(catalog: Catalog, families: Sequence[Family]) -> Near | None:
    """The nearest layout to what transformers takes the names for: it makes a prefix good."""
    layouts = [layout for _, layout in stated_layouts(catalog, families)]
    forms = (catalog, *with_prefixes(catalog, layouts))
    near = [nearest(form, families, StoredNames.of(form)) for form in forms]
    return min(filter(None, near), key=lambda item: item.distance, default=None)


def _has_unread_scales(catalog: Catalog, config: Mapping[str, object]) -> bool:
    """Whether there are scales of quantized weights that the configuration does not speak of."""
    return "quantization_config" not in config and bool(block_scales(catalog))


def _has_all(near: Near, config: Mapping[str, object]) -> bool:
    """Whether what is missing is only the head, and the configuration names a model without it."""
    classes = config.get("architectures")
    heads = all(_is_head(pattern) for pattern in near.missing)
    causal = not isinstance(classes, list) or any(_CAUSAL.search(str(name)) for name in classes)
    return heads and not causal


def _is_head(pattern: str) -> bool:
    return pattern.split(".")[0] in ("lm_head", "embed_out", "cls")


def _sizes_agree(catalog: Catalog, config: Mapping[str, object]) -> bool:
    """Whether the number of layers and the embedding are those of the configuration."""
    layers, rows, columns = (
        config.get(name) for name in ("num_hidden_layers", "vocab_size", "hidden_size")
    )
    if not all(isinstance(size, int) for size in (layers, rows, columns)):
        return False
    shapes = {tensor.shape for tensor in catalog.tensors if tensor.state != EXTRA}
    numbers = {
        int(part)
        for tensor in catalog.tensors
        if tensor.state != EXTRA
        for part in tensor.name.split(".")
        if part.isdigit() and len(part) < 9
    }
    return (rows, columns) in shapes and isinstance(layers, int) and {*range(layers)} <= numbers


def names_beside(catalog: Catalog, families: Sequence[Family]) -> tuple[str, tuple[str, ...]]:
    """The layout that the configuration states, and the stored names that its model does not have,
    for want of a rule or because the configuration rules them out.

    None of them, and no layout, where it states none that the other names follow.
    """
    stored = StoredNames.of(catalog)
    near = nearest(catalog, families, stored)
    if near is None or not near.is_stated or near.missing:
        return "", ()
    excluded = {pattern for pattern, _ in near.ruled_out}
    rules = ((kind, [index for index, _ in near.layout.matches(kind)]) for kind in stored.kinds)
    beside = {
        kind
        for kind, indices in rules
        if not indices or near.layout.rules[indices[0]].pattern.text in excluded
    }
    beside -= {*block_scales(catalog).values()}
    return str(near), tuple(name for name, kind in stored.every.items() if kind in beside)


def kept_beside(catalog: Catalog, families: Sequence[Family]) -> tuple[Diagnostic, ...]:
    """What a folder holds besides the tensors of the model that its configuration states.

    A tensor in a layer of the model was part of it when it was trained: without it the loader
    computes something else.  Of quantized models this is not known.
    """
    near, unknown = names_beside(catalog, families)
    layers: set[str] = set()
    if "quantization_config" not in (catalog.config or {}):
        beside = {*unknown}
        layers = {
            _layer_of(item.name)
            for item in catalog.tensors
            if item.state != EXTRA and item.name not in beside
        } - {""}
    inside = [name for name in unknown if _layer_of(name) in layers]
    others = [name for name in unknown if _layer_of(name) not in layers]
    out = []
    if inside:
        out.append(
            Diagnostic(
                "unused-weights",
                f"the model of `config.json` does not use {len(inside)} tensors in its layers, "
                "which are kept unchanged",
                level="warning",
                notes=(*_patterns(inside), f"by its configuration, the model is {near}"),
                helps=(
                    "make sure that `config.json` is that of the trained model: the loader ignores "
                    "these tensors, and computes without them",
                ),
            )
        )
    if others:
        out.append(
            Diagnostic(
                "unnamed-kept",
                f"{near} has no rule for {len(others)} names, which are kept unchanged",
                level="warning",
                notes=_patterns(others),
                helps=("the loader ignores names that its model does not have",),
            )
        )
    return tuple(out)


def _layer_of(name: str) -> str:
    """`model.layers.3` of the name of a tensor in this layer; empty for others."""
    found = re.match(r"(?:[^.]+\.)*?[0-9]+(?=\.)", name)
    return found.group() if found else ""


def _patterns(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"`{name}`" for name, _ in group_names(names))[:8]


def cannot_keep(error: ReshardError, names: str, catalog: Catalog) -> ReshardError:
    """Why the names of a source are not written into a target that has names of its own."""
    adapter = adapter_of(catalog)
    if adapter is not None:
        return _is_adapter(adapter, names, catalog)
    first, *rest = error.diagnostics
    more = (
        f"the target needs the names of layout `{names}`, and nothing states which tensor is which",
    )
    helps = [
        *first.helps,
        f"`--names {SOURCE}` keeps the names of the source; the loader of the target may not know "
        "them",
    ]
    if names == _HF and not isinstance((catalog.config or {}).get("model_type"), str):
        helps.insert(0, "if transformers knows the model, give its `config.json`: `--config DIR`")
    return ReshardError(
        [replace(first, notes=(*first.notes, *more), helps=tuple(helps)), *rest], error.exit_code
    )


def _is_adapter(adapter: Adapter, names: str, catalog: Catalog) -> ReshardError:
    base = f"`{adapter.base_model}`" if adapter.base_model else "a model that it does not name"
    kind = f"an adapter ({adapter.kind})" if adapter.kind else "an adapter"
    return target_error(
        "adapter-weights",
        f"{catalog.root} is {kind} of {base}, not a complete model",
        notes=[
            f"the target stores complete models, with the tensor names of layout `{names}`",
            f"its `{CONFIG}` states how to merge it into its base model; reshard does not merge "
            "adapters",
        ],
        helps=[
            "merge it into its base model with PEFT (`merge_and_unload`), and convert the result",
            "`--to hf` and `--to universal` keep the adapter unchanged",
        ],
    )
