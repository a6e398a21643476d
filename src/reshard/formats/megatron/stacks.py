"""Stacks of layers: which names count layers, and how many each pipeline stage has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LAYER = re.compile(r"((?:^|\.)layers\.)\d+(?=\.)")
"""The first number of a layer in a name."""

_WHOLE = ("mtp.",)
"""Names whose layers all lie on one stage, and are numbered over the model there."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of layers, cut over pipeline stages.

    Args:  prefix: of the names, up to the number.  axis: what it is called in the layout.
           counts: layers of every virtual chunk, chunk major, then stage.
    """

    prefix: str
    axis: str
    counts: tuple[int, ...]

    def first(self, chunk: int) -> int:
        """How many layers lie before those of a chunk."""
        return sum(self.counts[:chunk])


def layer_of(name: str) -> tuple[str, int] | None:
    """The stack that a name counts a layer of, by its prefix, and the number; None for others."""
    match = LAYER.search(name)
    if match is None or name.startswith(_WHOLE):
        return None
    return name[: match.end(1)], int(name[match.end(1) : match.end()])


def stacks_of(names: Iterable[tuple[int, str]], chunks: int) -> Mapping[str, Stack]:
    """Every stack, by prefix.

    Args:  names: with the number of the virtual chunk that holds them.  chunks: how many there are.
    """
    counts: dict[str, list[int]] = {}
    for chunk, name in names:
        layer = layer_of(name)
        if layer is not None:
            stack = counts.setdefault(layer[0], [0] * chunks)
            stack[chunk] = max(stack[chunk], layer[1] + 1)
    single = len(counts) == 1
    return {
        prefix: Stack(prefix, "layer" if single else _axis(prefix), tuple(numbers))
        for prefix, numbers in counts.items()
    }


def _axis(prefix: str) -> str:
    words = prefix.removesuffix("layers.").strip(".").replace(".", "_")
    return f"{words}_layer" if words else "layer"


def shifted(name: str, first: int) -> str:
    """A name with the number of its layer counted over all stages."""
    layer = layer_of(name)
    if layer is None or not first:
        return name
    prefix, number = layer
    return f"{prefix}{number + first}{name[len(prefix) + len(str(number)) :]}"
