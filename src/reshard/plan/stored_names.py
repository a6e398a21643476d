"""The names that a checkpoint stores, each kind once: asking every layout about them is quick."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from reshard.language.layout import Layout
from reshard.plan.catalog import Catalog
from reshard.run.states import EXTRA

_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,17})(?![^.])")


@dataclass(frozen=True, slots=True)
class StoredNames:
    """Every name of a catalog, in order.

    Args:  every: all of them, each with the first one that differs from it in whole numbers alone:
           `layers.1.w` with `layers.0.w`.
           kinds: these first ones.
    """

    every: Mapping[str, str]
    kinds: tuple[str, ...]

    @staticmethod
    def of(catalog: Catalog) -> StoredNames:
        """The names that rules apply to."""
        every = dict.fromkeys(t.name for t in catalog.tensors if t.state != EXTRA)
        kinds: dict[str, str] = {}
        first = {name: kinds.setdefault(_NUMBER.sub("#", name), name) for name in every}
        return StoredNames(first, tuple(kinds.values()))

    def asked_of(self, layout: Layout) -> tuple[str, ...]:
        """Those that tell whether a layout's rules match: all, if it spells numbers itself."""
        for rule in layout.rules:
            if any(isinstance(p, str) and _spells_number(p) for p in rule.pattern.pieces):
                return tuple(self.every)
            if any(slot.plus for slot in rule.pattern.slots):
                return tuple(self.every)
        return self.kinds


def _spells_number(text: str) -> bool:
    return any(part.isdigit() for part in text.split("."))
