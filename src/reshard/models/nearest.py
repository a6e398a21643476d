"""Why no layout, or more than one, is that of a checkpoint: the messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import Diagnostic, ReshardError, layout_error, target_error
from reshard.language.expression import names, to_text
from reshard.language.layout import Layout
from reshard.language.library import Family
from reshard.plan.catalog import Catalog
from reshard.plan.environment import environment
from reshard.plan.fit import Fit, holds, ruled_out, unmatched, unused_rules
from reshard.plan.names import group_names, quantity
from reshard.plan.stored_names import StoredNames
from reshard.run.states import EXTRA, PARAM

_ENDS = ("_scale_inv", "_scale")
_SHOWN = 4
_TYPE = "model_type"


@dataclass(frozen=True, slots=True)
class Found:
    """A layout that fits."""

    family: Family
    fit: Fit

    def __str__(self) -> str:
        return f"`{self.family.name}.{self.fit.layout.name}`"


@dataclass(frozen=True, slots=True)
class Near:
    """A layout that does not quite fit.

    Args:  is_stated: the source's configuration says that it is the one.
           unknown: stored names that it has no rule for.
           missing: patterns of its rules that no stored name follows.
           ruled_out: patterns that stored names follow, and the conditions that do not hold.
    """

    family: Family
    layout: Layout
    is_stated: bool
    unknown: tuple[str, ...]
    missing: tuple[str, ...]
    ruled_out: tuple[tuple[str, str], ...] = ()

    @property
    def distance(self) -> int:
        """Names that only one of the two has."""
        return len(self.unknown) + len(self.missing)

    def __str__(self) -> str:
        return f"`{self.family.name}.{self.layout.name}`"


def stated_layouts(
    catalog: Catalog, families: Sequence[Family]
) -> tuple[tuple[Family, Layout], ...]:
    """The layouts that the source's configuration says it is in."""
    pairs = [(pair, _agreement(catalog, pair[1])) for pair in _all(families)]
    return tuple(pair for pair, agrees in pairs if agrees)


def _all(families: Sequence[Family]) -> list[tuple[Family, Layout]]:
    return [(family, layout) for family in families for layout in family.layouts.values()]


def _agreement(catalog: Catalog, layout: Layout) -> bool | None:
    """Whether a layout is of what the configuration states; None where it leaves that open."""
    try:
        env = environment(layout, catalog, dict(catalog.mesh), {})
    except ReshardError:
        return None
    if layout.when is None:
        return None
    agrees = holds(layout.when, env)
    if agrees is None and _TYPE in env and _TYPE in names(layout.when):
        return True  # it states the type, and leaves facts of the names open
    return agrees


def nearest(catalog: Catalog, families: Sequence[Family], names: StoredNames) -> Near | None:
    """The layout that most stored names follow.

    Those that the configuration contradicts do not count; of those that are equally near, one that
    it states goes first.
    """
    pairs = [(pair, _agreement(catalog, pair[1])) for pair in _all(families)]
    is_stated = any(agrees for _, agrees in pairs)
    near = [
        _near(catalog, *pair, names, is_stated=agrees is True)
        for pair, agrees in pairs
        if not is_stated or agrees is not False
    ]
    near = [item for item in near if item.is_stated or len(item.unknown) < len(names.kinds)]
    return min(
        near, key=lambda item: (len(item.unknown), item.distance, not item.is_stated), default=None
    )


def _near(
    catalog: Catalog, family: Family, layout: Layout, names: StoredNames, *, is_stated: bool
) -> Near:
    missing = tuple(rule.pattern.text for rule in unused_rules(layout, catalog, names))
    out = tuple(
        (rule.pattern.text, to_text(rule.when))
        for rule in ruled_out(layout, catalog, names)
        if rule.when is not None
    )
    return Near(family, layout, is_stated, unmatched(layout, names), missing, out)


def block_scales(catalog: Catalog) -> dict[str, str]:
    """The scale of every quantized weight, by the name of the weight."""
    names = dict.fromkeys(tensor.name for tensor in catalog.tensors if tensor.state == PARAM)
    return {name: f"{name}{end}" for name in names for end in _ENDS if f"{name}{end}" in names}


def lacking_scales(catalog: Catalog) -> Iterator[Diagnostic]:
    """A warning where quantized weights have no scale, while others of their type have one."""
    scales = block_scales(catalog)
    if not scales:
        return
    tensors = {tensor.name: tensor for tensor in catalog.tensors if tensor.state == PARAM}
    dtypes = {tensors[name].dtype for name in scales if tensors[name].dtype.itemsize == 1}
    known = {*scales, *scales.values()}
    lacking = [name for name, item in tensors.items() if item.dtype in dtypes and name not in known]
    if not lacking:
        return
    name, like = lacking[0], next(iter(scales.values()))
    yield Diagnostic(
        "lacking-scales",
        f"the source does not store the scale of {len(lacking)} quantized "
        f"{'weight' if len(lacking) == 1 else 'weights'}",
        level="warning",
        notes=(
            f"first: `{name}`, {tensors[name].dtype} {list(tensors[name].shape)}",
            f"it stores the scales of {len(scales)} others, such as `{like}`",
        ),
        helps=(
            "look for a lost file or key: the values of a weight are unknown without its scale",
        ),
    )


def quantized_note(catalog: Catalog) -> str:
    """What is stored, for a message; empty if no weight has a scale."""
    scales = block_scales(catalog)
    if not scales:
        return ""
    tensors = {tensor.name: tensor for tensor in catalog.tensors if tensor.state == PARAM}
    weight, scale = next(iter(scales.items()))
    settings = (catalog.config or {}).get("quantization_config")
    block = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
    sizes = [str(size) for size in block] if isinstance(block, list) else []
    blocks = f"blocks of {' x '.join(sizes)}" if sizes else "blocks"
    return (
        f"{len(scales)} weights are quantized, with a scale for each of their {blocks}: `{weight}` "
        f"is {tensors[weight].dtype} {list(tensors[weight].shape)}, `{scale}` "
        f"{list(tensors[scale].shape)}"
    )


UNFITTING = ("no-layout-fits", "quantized-weights")
"""Codes of errors which say that no layout fits."""


def several_fit(catalog: Catalog, fits: Sequence[Found]) -> ReshardError:
    """More than one layout fits, and they do not say the same."""
    models = dict.fromkeys(item.family.name for item in fits)
    helps = ["choose one with `--model NAME`"]
    if len(models) == 1:
        helps = [
            "give one in a UCL file with `--layout FILE#NAME`, or state more sizes with `--set`"
        ]
    return layout_error(
        "several-layouts-fit",
        f"the names of this {catalog.format} checkpoint fit several "
        f"{'models' if len(models) > 1 else 'layouts'}",
        notes=[f"these match: {', '.join(map(str, fits))}"],
        helps=helps,
    )


def nothing_fits(
    catalog: Catalog,
    by_name: Mapping[str, Family],
    searched: Sequence[Family],
    fitting: Sequence[Found],
    names: StoredNames,
) -> ReshardError:
    """Why no layout fits: the configuration forbids those that would, or the names do."""
    describe = "describe the model in a UCL file, and give it with `--layout FILE#NAME`"
    if fitting:
        item = fitting[0]
        condition = item.fit.layout.when
        assert condition is not None
        return layout_error(
            "no-layout-fits",
            f"by its configuration, this {catalog.format} checkpoint is not a known model",
            notes=[
                f"its names fit {', '.join(map(str, fitting))}",
                f"layout `{item.fit.layout.name}` requires {to_text(condition)}",
            ],
            helps=[
                f"if its tensors have the same meaning, use `--model {item.family.name}`",
                describe,
            ],
        )
    notes, helps = [], []
    quantized = quantized_note(catalog)
    if quantized:
        return target_error(
            "quantized-weights",
            "the weights are quantized, and no layout describes them with their scales",
            notes=[quantized],
            helps=[
                "first convert the model to BF16 with its own tools",
                "`universal` and `dcp` keep weights and scales unchanged",
            ],
        )
    near = nearest(catalog, searched, names)
    if near is None:
        notes.append(_example(catalog))
    else:
        notes += near_notes(near, catalog)
        if near.unknown and not near.missing:
            few = group_names(name for name in names.every if names.every[name] in near.unknown)
            if len(few) <= _SHOWN:
                patterns = " ".join(f"--leave-out '{_starred(name)}'" for name, _ in few)
                helps.append(f"exclude them if the target does not need them: `{patterns}`")
    if near is None or not near.is_stated:
        notes.append(f"known models: {listed(by_name)}")
    whose = "a known model" if len(searched) > 1 else f"model `{searched[0].name}`"
    if near is not None and near.is_stated:
        whose = f"model `{near.family.name}`, which its configuration states"
    return layout_error(
        "no-layout-fits",
        f"the names of this {catalog.format} checkpoint do not fit {whose}",
        notes=notes,
        helps=[*helps, describe],
    )


def unknown_type(catalog: Catalog, kind: str, by_name: Mapping[str, object]) -> ReshardError:
    """The configuration states a type of model that no layout is of."""
    return layout_error(
        "no-layout-fits",
        f"by its configuration the source is a `{kind}` model, and no known layout describes this "
        "type",
        notes=[
            f"{_example(catalog)}",
            "a model of another type may have the same names and compute something different",
            f"known models: {listed(by_name)}",
        ],
        helps=[
            "describe the model in a UCL file, and give it with `--layout FILE#NAME`",
            "if it computes the same as one of them, name that one with `--model NAME`",
        ],
    )


def indescribable(catalog: Catalog, unsaid: Sequence[str]) -> ReshardError:
    """The configuration says something of the model that no layout can say."""
    return layout_error(
        "no-layout-fits",
        "the configuration has settings of the model that no known layout describes",
        notes=[*unsaid, _example(catalog)],
        helps=["describe the model in a UCL file, and give it with `--layout FILE#NAME`"],
    )


def near_notes(near: Near, catalog: Catalog) -> list[str]:
    """What a layout has no rule for, and what it has that is not stored."""
    head = f"the closest layout is {near}"
    if near.is_stated:
        kind = (catalog.config or {}).get("model_type")
        head = f"its configuration is that of layout {near}"
        if isinstance(kind, str):
            head = f"its configuration states `{kind}`, which is layout {near}"
    notes = [head]
    if near.unknown:
        notes.append(f"the layout has no rule for {_few(near.unknown)}")
    if near.missing:
        notes.append(f"the source does not store {_few(near.missing)}, which the layout has")
    for pattern, condition in near.ruled_out[:_SHOWN]:
        notes.append(
            f"the source stores `{pattern}`, which the layout has only if {condition}; the "
            "configuration states otherwise"
        )
    return notes


def _few(names: Sequence[str]) -> str:
    patterns = [f"`{name}`{quantity(count)}" for name, count in group_names(names)]
    more = f", and {len(patterns) - _SHOWN} more" if len(patterns) > _SHOWN else ""
    return ", ".join(patterns[:_SHOWN]) + more


def _starred(pattern: str) -> str:
    """`layers.{0..3}.w` as the command line takes it: `layers.*.w`."""
    out = []
    for part in pattern.split("."):
        out.append("*" if part.startswith("{") else part)
    return ".".join(out)


def _example(catalog: Catalog) -> str:
    names = [tensor.name for tensor in catalog.tensors if tensor.state != EXTRA]
    return f"it stores `{names[0]}`" if names else "it stores no tensors"


def listed(names: Mapping[str, object] | Sequence[str]) -> str:
    """Names for a message."""
    return ", ".join(f"`{name}`" for name in names)
