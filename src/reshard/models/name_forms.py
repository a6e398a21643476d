"""Stored names that a layout of the model need not have: buffers that are made anew, a layer that
predicts further tokens, and a prefix that the loader adds by itself.

Sources: transformers/modeling_utils.py (`_keys_to_ignore_on_load_unexpected`, `base_model_prefix`)
and the names of Llama 2, GPT-2, Pythia, BERT, and DeepSeek-V3 as their authors published them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.language.layout import Layout
from reshard.plan.catalog import Catalog, Left, LocalTensor
from reshard.plan.environment import environment
from reshard.plan.names import name_pattern
from reshard.run.states import EXTRA

_FREQUENCIES = "rotary frequencies, which the model computes from its configuration"
_MASK = "an attention mask, which the model recomputes"
_NOT_PARAMETERS: tuple[tuple[re.Pattern[str], Callable[[tuple[int, ...]], bool], str], ...] = (
    (re.compile(r"(.*\.)?inv_freq"), lambda shape: len(shape) == 1, _FREQUENCIES),
    (re.compile(r"(.*\.)?rope\.freqs|freqs_cis"), lambda shape: len(shape) <= 3, _FREQUENCIES),
    (re.compile(r"(.*\.)?rotary_emb\.(cos|sin)_cached"), lambda _: True, _FREQUENCIES),
    (
        re.compile(r"(.*\.)?(attn|attention|self_attn)\.bias"),
        lambda shape: len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3],
        _MASK,
    ),
    (re.compile(r"(.*\.)?masked_bias"), lambda shape: shape in ((), (1,)), _MASK),
    (
        re.compile(r"(.*\.)?position_ids"),
        lambda shape: len(shape) == 2 and shape[0] == 1,
        "position numbers, which the model recomputes",
    ),
)
_LAYER = re.compile(r"(?:.*\.)?layers\.([0-9]{1,9})\.(.+)")
_WRAPPERS = re.compile(
    r"(?:^module\.(?=.*\.))|(?<![^.])"
    r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module)\."
)
_TIED = "tie_word_embeddings"
_OF_MTP = {"eh_proj.weight", "enorm.weight", "hnorm.weight"}


def without_buffers(catalog: Catalog) -> Catalog | None:
    """The catalog without what is no parameter of the model; None if it stores nothing of the kind.

    What is left out stands in `left` with its reason.
    """
    behind = _layers_behind(catalog)
    reasons = {
        tensor.name: why
        for tensor in catalog.tensors
        if (why := _no_parameter(tensor, behind)) is not None
    }
    return leave_out(catalog, reasons) if reasons else None


def unwrapped(catalog: Catalog) -> Catalog | None:
    """The catalog without what wrappers of modules put into names; None if there is nothing.

    Source: `torch.compile`, `checkpoint_wrapper`, FSDP, and DDP put their modules between.
    """
    names = {
        tensor.name: _WRAPPERS.sub("", tensor.name)
        for tensor in catalog.tensors
        if tensor.state != EXTRA
    }
    if all(old == new for old, new in names.items()):
        return None
    return _renamed(catalog, names) if len({*names.values()}) == len(names) else None


def with_tied_head(catalog: Catalog, layouts: Sequence[Layout]) -> Iterator[Catalog]:
    """The catalog with a tied head under the name of the embedding, which it is a copy of.

    Args:  layouts: those that the source's configuration states.
    """
    names = dict.fromkeys(tensor.name for tensor in catalog.tensors if tensor.state != EXTRA)
    for layout in layouts:
        try:
            env = environment(layout, catalog, dict(catalog.mesh), {})
        except ReshardError:
            continue
        if not env.get(_TIED):
            continue
        head, embed = (
            next((rule.pattern.text for rule in layout.rules if rule.atom == atom), None)
            for atom in ("head", "embed")
        )
        if head not in names or embed is None:
            continue
        if embed not in names:
            yield _renamed(catalog, {head: embed})
        elif "copy" not in catalog.mesh:
            yield _with_copy(catalog, head, embed)


def _with_copy(catalog: Catalog, other: str, name: str) -> Catalog:
    tensors = []
    for tensor in catalog.tensors:
        if tensor.state != EXTRA and tensor.name in (other, name):
            copy = ("copy", int(tensor.name == other))
            tensor = replace(tensor, name=name, coord=(*tensor.coord, copy))
        tensors.append(tensor)
    return replace(
        catalog,
        mesh={**catalog.mesh, "copy": 2},
        tensors=tuple(tensors),
        aliases={**(catalog.aliases or {}), other: name},
        training=catalog.training.with_params(lambda names: [n for n in names if n != other]),
    )


def leave_out(catalog: Catalog, reasons: Mapping[str, str]) -> Catalog:
    """The catalog without some tensors in all their states.

    Args:  reasons: by name, why it is left out.
    """
    first: dict[str, LocalTensor] = {}
    for tensor in catalog.tensors:
        if tensor.name in reasons:
            first.setdefault(tensor.name, tensor)
    items = (Left(tensor.file, name, reasons[name]) for name, tensor in first.items())
    return replace(
        catalog,
        tensors=tuple(tensor for tensor in catalog.tensors if tensor.name not in reasons),
        left=(*catalog.left, *items),
        aliases={
            alias: name
            for alias, name in (catalog.aliases or {}).items()
            if name not in reasons and alias not in reasons
        },
        buffers=tuple(name for name in catalog.buffers if name not in reasons),
        frozen=tuple(name for name in catalog.frozen if name not in reasons),
        training=catalog.training.with_params(
            lambda names: [name for name in names if name not in reasons]
        ),
        layout=_needing_less(catalog, reasons),
    )


def _needing_less(catalog: Catalog, names: Mapping[str, str]) -> Layout:
    """The layout that was derived from the names, for which the excluded ones may be missing.

    A layout of a model stays as it is: what the model needs is not for the names to say.
    """
    layout = catalog.layout
    if layout.model is not None:
        return layout
    excluded = {index for name in names for index, _ in layout.matches(name)}
    rules = (
        replace(rule, optional=True) if index in excluded else rule
        for index, rule in enumerate(layout.rules)
    )
    return replace(layout, rules=tuple(rules)) if excluded else layout


def with_prefixes(catalog: Catalog, layouts: Sequence[Layout]) -> Iterator[Catalog]:
    """The catalog of a base model, named as in the whole model: `layers.0` as `model.layers.0`.

    Args:  layouts: those that the source's configuration states.
    """
    tried: set[str] = set()
    for layout in layouts:
        counts = Counter(_prefix(rule.pattern.text) for rule in layout.rules)
        for prefix, count in counts.items():
            if not prefix or prefix in tried or 2 * count < len(layout.rules):
                continue
            tried.add(prefix)
            matched = {
                tensor.name for tensor in catalog.tensors if any(layout.matches(tensor.name))
            }
            names = {
                tensor.name: f"{prefix}.{tensor.name}"
                for tensor in catalog.tensors
                if tensor.state != EXTRA and tensor.name not in matched
            }
            if names and not any(name.startswith(f"{prefix}.") for name in names):
                yield _renamed(catalog, names)


def _renamed(catalog: Catalog, names: Mapping[str, str]) -> Catalog:
    def of(name: str) -> str:
        return names.get(name, name)

    return replace(
        catalog,
        tensors=tuple(replace(tensor, name=of(tensor.name)) for tensor in catalog.tensors),
        aliases={of(alias): of(name) for alias, name in (catalog.aliases or {}).items()},
        buffers=tuple(map(of, catalog.buffers)),
        frozen=tuple(map(of, catalog.frozen)),
        training=catalog.training.with_params(lambda params: map(of, params)),
    )


def _prefix(pattern: str) -> str:
    """The first word of a name, where no index is in it."""
    first, dot, _ = pattern.partition(".")
    return first if dot and first.isidentifier() else ""


def _no_parameter(tensor: LocalTensor, behind: Mapping[str, str]) -> str | None:
    if tensor.state == EXTRA:
        return None
    if tensor.name in behind:
        return behind[tensor.name]
    for pattern, fits, why in _NOT_PARAMETERS:
        if pattern.fullmatch(tensor.name) and fits(tensor.shape):
            return why
    return None


def _layers_behind(catalog: Catalog) -> dict[str, str]:
    """Tensors of layers behind the last one that predict further tokens, with the reason."""
    count = (catalog.config or {}).get("num_hidden_layers")
    if not isinstance(count, int):
        return {}
    layers: dict[int, dict[str, str]] = {}
    for tensor in catalog.tensors:
        match = _LAYER.fullmatch(tensor.name)
        if match is not None and int(match[1]) >= count:
            layers.setdefault(int(match[1]), {})[tensor.name] = match[2]
    return {
        name: f"layer {number} predicts an additional token (MTP); it follows the {count} layers "
        "of the model"
        for number, names in layers.items()
        if {*names.values()} >= _OF_MTP
        for name in names
    }


def without_named(catalog: Catalog, patterns: Iterable[str]) -> Catalog:
    """The catalog without the tensors whose names follow one of the patterns, in all their states.

    Args:  patterns: names; a `*` stands for any characters.
    Raises: ReshardError[unknown-tensor] for a pattern that no name follows.
    """
    names = dict.fromkeys(tensor.name for tensor in catalog.tensors)
    reasons: dict[str, str] = {}
    for text in patterns:
        pattern = name_pattern(text)
        matches = [name for name in names if pattern.fullmatch(name)]
        if not matches:
            raise _unknown(text, names)
        reasons.update(dict.fromkeys(matches, f"excluded by the name `{text}`"))
    return leave_out(catalog, reasons) if reasons else catalog


def _unknown(text: str, names: Iterable[str]) -> ReshardError:
    from difflib import get_close_matches

    near = get_close_matches(text, names, 1)
    return ReshardError(
        Diagnostic(
            "unknown-tensor",
            f"no tensor of the source matches `{text}`, which is to be excluded",
            helps=(f"did you mean `{near[0]}`?",) if near else (),
        ),
        Exit.USAGE,
    )


def without_left_out(catalog: Catalog, layout: Layout) -> Catalog:
    """The catalog without the tensors that a layout says are no parameters."""
    if not layout.left_out or layout.files:  # the reader of described files obeys it
        return catalog
    names = dict.fromkeys(tensor.name for tensor in catalog.tensors)
    reasons = {name: item.because for name in names if (item := layout.leaves_out(name))}
    return leave_out(catalog, reasons) if reasons else catalog
