"""The type of model that a source states, and the families that are of it."""

from __future__ import annotations

from reshard.errors import Diagnostic
from reshard.language.expression import names, operands
from reshard.language.library import Family
from reshard.models.config_json import stated_config
from reshard.models.transformers import type_of_architecture
from reshard.plan.catalog import Catalog
from reshard.plan.environment import flatten
from reshard.plan.fit import holds

_TYPE = "model_type"


def stated_type(catalog: Catalog) -> str | None:
    """The type of model that a source states; the class of transformers where it states no type."""
    for config in (stated_config(catalog), catalog.config):
        kind = None if config is None else config.get(_TYPE)
        if isinstance(kind, str) and kind:
            return kind
    classes = (catalog.config or {}).get("architectures")
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        return type_of_architecture(classes[0]) or classes[0]
    return None


_UNDESCRIBED = {"mlp_only_layers": "a list of the layers without experts"}
"""Keys of transformers that change which tensors a layer has, in a way that no layout describes."""


def undescribed(catalog: Catalog) -> tuple[str, ...]:
    """What a source states of its model that the layouts of its family cannot say."""
    config = {**(catalog.config or {}), **(stated_config(catalog) or {})}
    return tuple(
        f"`{key}` is {config[key]}: {what}" for key, what in _UNDESCRIBED.items() if config.get(key)
    )


def is_stated(catalog: Catalog, family: Family, name: str) -> bool:
    """Whether a source states a type of model that a layout is of."""
    env = flatten({**(catalog.config or {}), **(stated_config(catalog) or {})})
    if family.index is not None and env.get(_TYPE) not in family.types(name):
        return False
    layout = family.layout(name)
    return any(
        _TYPE in names(part) and holds(part, env)
        for condition in operands("or", layout.when)
        for part in operands("and", condition)
    )


def guessed(model: str) -> Diagnostic:
    """The warning where names alone told the model."""
    return Diagnostic(
        "guessed-model",
        f"the source does not record its model; by its names it is read as `{model}`",
        level="warning",
        notes=("other models may have the same names and shapes and compute something different",),
        helps=(f"if that is right, confirm it with `--model {model}`",),
    )
