"""The descriptions of files that come with reshard, and which of them a folder has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reshard.errors import ReshardError
from reshard.formats.described.files import Listing
from reshard.formats.described.tree import find, open_tree
from reshard.formats.described.walk import fits, needed_of
from reshard.language.expression import known_value
from reshard.language.layout import FileRule, Layout, ParameterOrder
from reshard.language.library import shipped_layout
from reshard.language.shipped_index import DESCRIPTIONS

ANY_FILE = "single_file"
"""The description of any one file, which is tried last."""

ORDER_FREE = (ANY_FILE, "nanogpt", "lightning", "accelerate_whole", "accelerate_ranks")
"""Descriptions of files in which a user's script makes the optimizer, and chooses its order.
nanoGPT's own model has the order that its description says; another model in such a file may not.
"""


_FILES = {name: file for file, (name, _) in DESCRIPTIONS.items()}


def description(name: str) -> Layout:
    """The description whose layout has a name."""
    return shipped_layout(_FILES[name])


def is_shipped(layout: Layout) -> bool:
    """Whether a layout is one of the descriptions."""
    return layout.name in _FILES and description(layout.name) is layout


def is_order_free(layout: Layout) -> bool:
    """Whether the optimizer may count parameters in another order than the module's.

    A layout of the user's own says with `number by` that the order is the module's.
    """
    return is_shipped(layout) and layout.name in ORDER_FREE


def order_of(
    layout: Layout, names: Sequence[str], config: Mapping[str, object]
) -> ParameterOrder | None:
    """The order of a module's parameters that has all of them: one of the layout's own, else of
    those that another description has for the same names. None where there is none.

    Args:  config: of the model; which order it has may depend on it.
    """
    orders = layout.orders
    if not orders and layout.names:
        others = [description(name) for name in _FILES if name != layout.name]
        same = (item.orders for item in others if item.names == layout.names and item.orders)
        orders = next(same, ())
    for order in orders:
        holds = order.when is None or known_value(order.when, config) is True
        if holds and all(map(order.has, names)):
            return order
    return None


def find_descriptions(path: Path) -> list[Layout]:
    """The descriptions that a folder has the files of, with everything in them that must be there.

    One file of each kind is opened, if all kinds are there by their names.
    """
    listing = Listing(path)
    return [
        layout
        for name, required in DESCRIPTIONS.values()
        if name != ANY_FILE
        and all(listing.first(names) is not None for names in required)
        and _has_all(layout := description(name), listing)
    ]


def _has_all(layout: Layout, listing: Listing) -> bool:
    """Whether the first file of each kind has what must be in it."""
    for rule in layout.files:
        if not rule.optional:
            name = listing.first(tuple(item.text for item in rule.names))
            if name is None or not holds(rule, listing.root / name):
                return False
    return True


def holds(rule: FileRule, path: Path) -> bool:
    """Whether a file has all that a rule asks for; not if it cannot be read."""
    needed = needed_of(rule)
    try:
        tree = open_tree(path) if needed else None
    except ReshardError:
        return False
    return all(
        any(fits(entry, item.value) for place in entry.places for item in find(tree, place)[0])
        for entry in needed
    )
