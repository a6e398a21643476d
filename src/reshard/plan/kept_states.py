"""Optimizer states that are kept as they were found, because they are of no parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from reshard.plan.arrangement import Arrangement
from reshard.run.states import EXTRA

KEY = "optimizer_states"
"""Where `training.framework` has them, by file; tensors among them are `{"$tensor": NAME}`."""


def without_kept_states(arrangement: Arrangement) -> Arrangement:
    """A source that does not know of them."""
    catalog = arrangement.catalog
    framework = catalog.training.framework
    if framework is None or KEY not in framework:
        return arrangement
    names = set(_tensors(framework[KEY]))
    left = {key: value for key, value in framework.items() if key != KEY}
    kept = [w for w in arrangement.wholes if w.state == EXTRA and w.name in names]
    atoms = {(key, EXTRA) for whole in kept for key, _ in whole.segments}
    return replace(
        arrangement,
        catalog=replace(catalog, training=replace(catalog.training, framework=left)),
        wholes=tuple(w for w in arrangement.wholes if w.state != EXTRA or w.name not in names),
        parts={key: parts for key, parts in arrangement.parts.items() if key not in atoms},
    )


def _tensors(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if set(value) == {"$tensor"}:
            yield str(value["$tensor"])
            return
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
