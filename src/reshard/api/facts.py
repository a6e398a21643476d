"""Whether what a source says of its model reaches the layout that it is renamed to, or is named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from reshard.api.stated_model import stated_type, types_of
from reshard.errors import Diagnostic, layout_error
from reshard.formats.megatron import model_facts as megatron
from reshard.formats.model_facts import changing_keys
from reshard.formats.model_json import stated_config
from reshard.language.conditions import constant
from reshard.language.expression import names
from reshard.language.layout import Layout
from reshard.language.library import Family
from reshard.plan.arrangement import Arrangement
from reshard.plan.fit import facts
from reshard.plan.framework_config import framework_config
from reshard.plan.model_values import model_names

_FRAMEWORKS = {
    "megatron_deepspeed": "Megatron-DeepSpeed",
    "megatron": "Megatron",
    "nanotron": "nanotron",
    "torchtitan": "torchtitan",
    "olmo_core": "OLMo-core",
    "meta": "Meta's format",
    "nanogpt": "nanoGPT",
    "hf": "transformers",
}
_SHOWN = 60


def check_facts(before: Arrangement, after: Arrangement, family: Family) -> tuple[Diagnostic, ...]:
    """Warnings for facts that the names' framework has no place for.

    Args:  before, after: as it was read, and as it is named.
    Raises: ReshardError[other-facts] where a run's arguments change what the model computes.
    """
    source, target = _framework(before.layout), _framework(after.layout)
    config = before.catalog.config or {}
    args = config.get("args")
    out: tuple[Diagnostic, ...] = ()
    if source == target:
        return ()
    is_left = source.startswith("Megatron") and not target.startswith("Megatron")
    if is_left and isinstance(args, Mapping):
        out = _check_arguments(before, args, is_plain=source == "Megatron")
    if target == "transformers":
        return out
    return (*out, *_left(before, after, family, target))


def _framework(layout: Layout) -> str:
    for prefix, title in _FRAMEWORKS.items():
        if layout.name == prefix or layout.name.startswith(f"{prefix}_"):
            return title
    return layout.name


def _check_arguments(
    before: Arrangement, args: Mapping[str, object], *, is_plain: bool
) -> tuple[Diagnostic, ...]:
    layout = before.layout
    used = {
        name.removeprefix("args.")
        for line in (*layout.config.values(), layout.when)
        if line is not None
        for name in names(line)
    }
    _, said = megatron.facts_of(args)
    if args.get("multi_latent_attention"):
        used |= megatron.router_of_latent(args)
    left = megatron.unsaid(args, {*used, *said})
    if left:
        raise layout_error(
            "other-facts",
            "the run's arguments change what the model computes, and layout "
            f"`{layout.name}` has no place for them",
            notes=[f"`{name}` is {_shown(value)}" for name, value in left.items()],
            helps=[
                "convert to `universal` or to `megatron`, which keep the arguments; no other names "
                "are known for such a model"
            ],
        )
    others = megatron.unknown(args) if is_plain else ()
    if not others:
        return ()
    is_one = len(others) == 1
    return (
        Diagnostic(
            "unknown-arguments",
            f"{len(others)} {'argument' if is_one else 'arguments'} of the run "
            f"{'is' if is_one else 'are'} not Megatron's own",
            level="warning",
            notes=tuple(f"`{name}` is {_shown(args[name])}" for name in others[:8]),
            helps=(
                "see whether it changes what the model computes: it is left behind"
                if is_one
                else "see whether they change what the model computes: they are left behind",
            ),
        ),
    )


def _left(
    before: Arrangement, after: Arrangement, family: Family, target: str
) -> tuple[Diagnostic, ...]:
    """A warning for keys of a configuration that a framework's own has no place for."""
    config = stated_config(before.catalog) or before.catalog.config or {}
    kind = stated_type(before.catalog)
    if kind is None:
        return ()
    used = _carried(config, kind, after, family)
    if target == "Megatron":
        args = framework_config(after.layout, after.values).get("args")
        is_latent = isinstance(args, Mapping) and "kv_lora_rank" in args
        used |= megatron.arguments_for(config, is_latent=is_latent)[1]
    left = {**changing_keys({**config, "model_type": kind}, used), **_otherwise(before, after)}
    if not left:
        return ()
    return (
        Diagnostic(
            "model-facts-left",
            f"{target} has no place for {len(left)} of the settings of the model",
            level="warning",
            notes=tuple(f"`{key}` is {_shown(value)}" for key, value in left.items()),
            helps=(
                f"a run of {target} must be told of them, or it computes something else",
                "`config.json` goes along where the target has a folder for it",
            ),
        ),
    )


def _otherwise(before: Arrangement, after: Arrangement) -> dict[str, object]:
    """What the framework always computes in another way: `config activation = "gelu"`."""
    out: dict[str, object] = {}
    for name, expression in after.layout.config.items():
        said, here = constant(expression, {}), after.values.get(name)
        if isinstance(said, str) and here not in (None, said):
            spelled = names(before.layout.config.get(name, expression))
            out[next(iter(spelled), name)] = here
    return out


def _carried(
    config: Mapping[str, object], kind: str, after: Arrangement, family: Family
) -> set[str]:
    """Names of a configuration that the layout of another framework says in its own words."""
    layout, model = after.layout, after.layout.model
    assert model is not None
    sizes = {name for axis in model.axes.values() if axis.size for name in names(axis.size)}
    told = {*sizes, *facts(layout), *model_names(model)}
    out = set(told)
    for line in _lines(family, kind):
        for name, expression in line.config.items():
            if name in told or _says(layout, name, after.values.get(name)):
                out.update(names(expression))
    return out


def _lines(family: Family, kind: str) -> Iterable[Layout]:
    """The layouts of a family in transformers' names, those of the stated type."""
    for name, layout in family.layouts.items():
        if _framework(layout) == "transformers" and kind in types_of(family, name):
            yield layout


def _says(layout: Layout, name: str, value: object) -> bool:
    if name not in layout.config:
        return False
    said = constant(layout.config[name], {})
    return said is None or said == value


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
