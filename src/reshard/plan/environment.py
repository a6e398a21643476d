"""What a layout's expressions can name: mesh sizes, model sizes, the writer's configuration."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.language.expression import Expression, config_value, known_value
from reshard.language.layout import Layout
from reshard.plan.catalog import Catalog


def environment(
    layout: Layout, catalog: Catalog, mesh: Mapping[str, int], settings: Mapping[str, float | None]
) -> dict[str, object]:
    """Every name with its value; later wins: configuration, `config` lines, mesh, settings.

    A `config` line that asks for a name which the checkpoint lacks gives none: that is an error
    only where the size is needed.

    Raises: what evaluating a `config` line raises otherwise.
    """
    env = flatten(catalog.config or {})
    fixed = {**dict.fromkeys(layout.mesh, 1), **mesh, **settings}
    env.update(fixed)
    for name, expression in layout.config.items():
        value = config_value(expression, env)
        if value is not None:
            env[name] = value
    env.update(fixed)
    return env


def flatten(config: Mapping[str, object]) -> dict[str, object]:
    """Every value by its name; of what is nested, the parts of the name are joined by dots."""
    env: dict[str, object] = {}
    _flatten("", config, env)
    return env


def _flatten(prefix: str, value: Mapping[str, object], env: dict[str, object]) -> None:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item.keys() == {"$int"}:
            env[name] = int(str(item["$int"]))  # as `storage.objects` writes a large one
        elif isinstance(item, Mapping):
            _flatten(f"{name}.", item, env)
        else:
            env[name] = item


def is_known(expression: Expression, env: Mapping[str, object]) -> bool:
    """Whether an expression has a value; a size that has none is taken from the stored shapes."""
    return known_value(expression, env) is not None
