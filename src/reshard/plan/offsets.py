"""Indices in names that start behind others: `model.layers.{mtp + num_hidden_layers}.enorm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reshard.errors import ReshardError
from reshard.language.expression import Variable, evaluate, known_value
from reshard.language.layout import Layout
from reshard.language.pattern import IndexSlot
from reshard.plan.solve import integer


def has_offsets(layout: Layout) -> bool:
    """Whether an index of some name is moved."""
    return any(slot.plus for rule in layout.rules for slot in rule.pattern.slots)


def with_offsets(layout: Layout, env: Mapping[str, object]) -> Layout:
    """The layout with the values of what its names add to indices; where it moves some, the indices
    of other axes end where those axes do, as far as their sizes are known.

    Raises: what evaluating a size raises.
    """
    if layout.model is None or not has_offsets(layout):
        return layout
    sizes: dict[str, int] = {}
    for axis in layout.model.axes.values():
        try:
            size = None if axis.size is None else known_value(axis.size, env)
        except ReshardError:
            continue  # said where the size is needed
        if isinstance(size, int) and not isinstance(size, bool):
            sizes[axis.name] = size

    def known(slot: IndexSlot) -> IndexSlot:
        below = sizes.get(slot.axis)
        if not slot.plus:
            return slot if slot.local else replace(slot, below=below)
        value = evaluate(Variable(slot.plus, slot.span), env)
        offset = integer(value, f"`{slot.plus}`, which names add to `{slot.axis}`,")
        return replace(slot, offset=offset, below=below)

    return replace(
        layout,
        rules=tuple(replace(rule, pattern=rule.pattern.with_slots(known)) for rule in layout.rules),
    )
