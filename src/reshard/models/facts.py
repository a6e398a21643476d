"""Whether what a source says of its model reaches the layout that it is renamed to, or is named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

from reshard.errors import Diagnostic, ReshardError, layout_error
from reshard.language.conditions import constant
from reshard.language.expression import names
from reshard.language.layout import Layout
from reshard.language.library import Family
from reshard.models import megatron
from reshard.models.config_json import known_facts, stated_config
from reshard.models.framework_keys import Facts, FrameworkKeys, keys_of
from reshard.models.megatron_arguments import facts_for
from reshard.models.stated import stated_type
from reshard.models.transformers import (
    ACTIVATIONS,
    FACTS,
    activation_of,
    changing_keys,
    is_activation,
    rope_of,
)
from reshard.plan.arrangement import Arrangement
from reshard.plan.catalog import Catalog
from reshard.plan.fit import facts
from reshard.plan.model_values import model_names

_MEGATRON, _OLD_MEGATRON, _NANOTRON, _META = (
    "Megatron",
    "Megatron-DeepSpeed",
    "nanotron",
    "Meta's format",
)
_FRAMEWORKS = {
    "megatron_deepspeed": _OLD_MEGATRON,
    "megatron": _MEGATRON,
    "nanotron": _NANOTRON,
    "torchtitan": "torchtitan",
    "olmo_core": "OLMo-core",
    "meta": _META,
    "nanogpt": "nanoGPT",
    "vllm": "transformers",
    "hf": "transformers",
}
_TABLES = {_NANOTRON: "nanotron", _META: "meta"}
_ACTIVATION = "activation"
"""What layouts call it where it is always the same."""
_SHOWN = 60
_UNKNOWN_SHOWN = 8


def check_facts(
    before: Arrangement, after: Arrangement, family: Family
) -> tuple[Catalog, tuple[Diagnostic, ...]]:
    """The catalog of the source with the facts that its framework states, in transformers' words;
    and warnings for those that the framework of the new names has no place for.

    Args:  before, after: as it was read, and as it is named.
    Raises: ReshardError[other-facts] where the source's own configuration changes what the model
            computes, and no other framework has words for it.
    """
    source, target = _framework(before.layout.name), _framework(after.layout.name)
    catalog = before.catalog
    if source == target:
        return catalog, ()
    own = _Source(before, source, after.layout if target == "transformers" else None)
    warnings: tuple[Diagnostic, ...] = ()
    if source.startswith(_MEGATRON) and target.startswith(_MEGATRON):
        pass  # the arguments go along
    else:
        warnings = own.check()
    config = catalog.config or {}
    facts = config.get(FACTS)
    words = {**(facts if isinstance(facts, Mapping) else {}), **own.facts.words}
    if before.values.get(_ACTIVATION) and stated_type(catalog) is None:
        words.setdefault("hidden_act", before.values[_ACTIVATION])
    if words:
        catalog = replace(catalog, config={**config, FACTS: words})
    if target != "transformers":
        losses = _left(catalog, words, after, family, target) | _otherwise(before, after)
        warnings = (*warnings, *_warning(losses, target))
    return catalog, warnings


def _framework(layout: str) -> str:
    for prefix, title in _FRAMEWORKS.items():
        if layout == prefix or layout.startswith(f"{prefix}_"):
            return title
    return layout


def _check_rotary_bases(config: Mapping[str, object]) -> None:
    """Refuse two bases of rotary positions that differ: only one of them is the model's.

    Raises: ReshardError[other-facts].
    """
    rope = config.get("rope_parameters")
    used = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    other = config.get("rope_theta")
    if used is None or other is None or used == other:
        return
    raise layout_error(
        "other-facts",
        "the source's `config.json` states two bases of rotary positions",
        notes=[
            f"`rope_theta` is {_shown(other)}",
            f"`rope_parameters.rope_theta` is {_shown(used)}, which transformers 5 uses",
        ],
        helps=["remove the one that the model was not trained with from `config.json`"],
    )


class _Source:
    """What a framework's own configuration of a model says.

    Args:  framework: the one whose names the source has.
           config_layout: that of a `config.json` that will be made, which must say all of it.
    """

    def __init__(
        self, before: Arrangement, framework: str, config_layout: Layout | None = None
    ) -> None:
        self.facts = Facts()
        self._config_layout = config_layout
        self._layout, self._framework = before.layout, framework
        self._table: FrameworkKeys | None = None
        self._config: Mapping[str, object] = {}
        self._is_run = framework.startswith(_MEGATRON)
        self._stated = stated_config(before.catalog) or {}
        config = before.catalog.config or {}
        if self._is_run:
            args = config.get("args")
            if isinstance(args, Mapping):
                self._config, self._table = args, megatron.megatron_keys()
                self.facts = megatron.facts_of(args, is_core=framework == _MEGATRON)
        elif framework in _TABLES:
            # What a `config.json` beside it says is no key of the framework's own.
            self._config = {k: v for k, v in config.items() if self._stated.get(k) != v}
            self._table = keys_of(_TABLES[framework])
            self.facts = self._table.facts(self._config)

    def check(self) -> tuple[Diagnostic, ...]:
        """Warnings for keys that the framework itself does not have.

        Raises: ReshardError[other-facts].
        """
        if self._framework == "transformers":
            _check_rotary_bases(self._stated)
        if self._table is None:
            return ()
        used = self._used()
        losses = self._table.unsaid(self._config, used)
        losses |= {key: self._config[key] for key in self.facts.lost if key in self._config}
        if losses:
            raise self._other_facts(losses)
        others = self._table.unknown(self._config, used)
        return (self._unknown(others),) if others and self._framework != _OLD_MEGATRON else ()

    def _used(self) -> set[str]:
        layout = self._layout
        lines = [line for name, line in layout.config.items() if self._is_told(name)]
        lines += [layout.when] if layout.when is not None else []
        used = {name.removeprefix("args.") for line in lines for name in names(line)}
        used |= self.facts.said
        if self._is_run:
            if self._config.get("multi_latent_attention"):
                used |= megatron.router_of_latent(self._config)
            return used
        used |= {*facts(layout), *(model_names(layout.model) if layout.model else ()), FACTS}
        if rope_of(self._stated).get("rope_type", "default") != "default":
            used |= {"use_scaled_rope", "rope_scaling"}  # it says which scaling is meant
        return used

    def _is_told(self, name: str) -> bool:
        """Whether what a `config` line of the source says has a place in what is made of it."""
        if self._config_layout is None or self._layout.model is None:
            return True
        model = {*model_names(self._layout.model), *facts(self._layout)}
        return name in self._config_layout.config or name in model or name in _of_cut(self._layout)

    def _other_facts(self, losses: Mapping[str, object]) -> ReshardError:
        headline = "the source's configuration changes what the model computes, and no other layout"
        rest = "of the model can state that"
        helps = ["convert to `universal`, which keeps the configuration"]
        if self._is_run:
            headline = "the run's arguments change what the model computes, and layout"
            said = {item for line in self._layout.config.values() for item in names(line)}
            is_read = self._config_layout is not None and {f"args.{key}" for key in losses} <= said
            silent = self._config_layout if is_read and self._config_layout else self._layout
            rest = f"`{silent.name}` cannot state them"
            helps = [
                "convert to `universal` or to `megatron`, which keep the arguments; reshard knows "
                "no other layout for such a model"
            ]
        if {"use_scaled_rope", "rope_scaling"} & losses.keys():
            helps.insert(
                0,
                "if transformers' `config.json` states how positions are scaled, give it: "
                "`--config DIR`",
            )
        return layout_error(
            "other-facts",
            f"{headline} {rest}",
            notes=[f"`{name}` is {_shown(value)}" for name, value in losses.items()],
            helps=helps,
        )

    def _unknown(self, others: tuple[str, ...]) -> Diagnostic:
        noun = "argument" if self._is_run else "key"
        whose = "the run" if self._is_run else "the model's configuration"
        owner = self._framework if self._framework != _META else "Meta's format"
        is_one = len(others) == 1
        return Diagnostic(
            "unknown-arguments",
            f"{len(others)} {noun if is_one else f'{noun}s'} of {whose} "
            f"{'is' if is_one else 'are'} not known to {owner}",
            level="warning",
            notes=tuple(
                f"`{name}` is {_shown(self._config[name])}" for name in others[:_UNKNOWN_SHOWN]
            ),
            helps=(
                "check whether it changes what the model computes; it is not converted"
                if is_one
                else "check whether they change what the model computes; they are not converted",
            ),
        )


def _of_cut(layout: Layout) -> set[str]:
    """What a layout asks for to say how axes are cut and padded, which is nothing of the model."""
    asked = (split.pad_to for split in layout.places.values() if split.pad_to is not None)
    return {name for expression in asked for name in names(expression)}


def _left(
    catalog: Catalog, words: Mapping[str, object], after: Arrangement, family: Family, target: str
) -> dict[str, object]:
    """What a framework's own configuration has no place for, in transformers' words.

    Args:  words: what the source's framework states, in transformers' words.
    """
    kind = stated_type(catalog)
    config = words if kind is None else {**known_facts(catalog), "model_type": kind}
    used = _carried(kind, after, family)
    if target == _MEGATRON:
        arguments = facts_for(config, after)
        used = (used | arguments.said) - arguments.lost
    elif target in _TABLES:
        used |= keys_of(_TABLES[target]).config(config).said
    expression = after.layout.config.get(_ACTIVATION)
    always = None if expression is None else constant(expression, {})
    activation = activation_of(config)
    if always is None or activation is None:
        return changing_keys(config, used)
    losses = changing_keys(config, {*used, *ACTIVATIONS})
    key, value = activation
    return losses if is_activation(value, always) else {**losses, key: value}


def _otherwise(before: Arrangement, after: Arrangement) -> dict[str, object]:
    """What the framework always computes in another way: `config activation = "gelu"`."""
    out: dict[str, object] = {}
    for name, expression in after.layout.config.items():
        constant_value, value = constant(expression, {}), after.values.get(name)
        if isinstance(constant_value, str) and value not in (None, constant_value):
            spelled = names(before.layout.config.get(name, expression))
            out[next(iter(spelled), name)] = value
    return out


def _warning(losses: Mapping[str, object], target: str) -> tuple[Diagnostic, ...]:
    if not losses:
        return ()
    return (
        Diagnostic(
            "model-facts-left",
            f"{target} cannot store {len(losses)} of the settings of the model",
            level="warning",
            notes=tuple(f"`{key}` is {_shown(value)}" for key, value in losses.items()),
            helps=(
                f"set them in the {target} run, or it computes something different",
                "`config.json` is copied if the target has a folder for it",
            ),
        ),
    )


def _carried(kind: str | None, after: Arrangement, family: Family) -> set[str]:
    """Names of a configuration that the layout of another framework says in its own words."""
    layout, model = after.layout, after.layout.model
    assert model is not None
    sizes = {name for axis in model.axes.values() if axis.size for name in names(axis.size)}
    names_of_layout = {*sizes, *facts(layout), *model_names(model)}
    out = set(names_of_layout)
    for line in _lines(family, kind):
        for name, expression in line.config.items():
            if name in names_of_layout or _says(layout, name, after.values.get(name)):
                out.update(names(expression))
    return out


def _lines(family: Family, kind: str | None) -> Iterable[Layout]:
    """The layouts of a family in transformers' names, those of the stated type."""
    for name in family.layout_names:
        if _framework(name) == "transformers" and kind in (None, *family.types(name)):
            yield family.layout(name)


def _says(layout: Layout, name: str, value: object) -> bool:
    if name not in layout.config:
        return False
    constant_value = constant(layout.config[name], {})
    return constant_value is None or constant_value == value


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
