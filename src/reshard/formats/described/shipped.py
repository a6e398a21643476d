"""The descriptions of files that come with reshard, and which of them a folder has."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from reshard.errors import ReshardError
from reshard.formats.described.files import first_file
from reshard.formats.described.tree import find, open_tree
from reshard.formats.described.walk import fits, needed_of
from reshard.language import load_layout
from reshard.language.layout import FileRule, Layout, ParameterOrder

ANY_FILE = "single_file"
"""The description of any one file, which is tried last."""


@cache
def descriptions() -> Mapping[str, Layout]:
    """Every description, by the name of its layout."""
    folder = resources.files("reshard").joinpath("layouts", "files")
    out = {}
    for item in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if item.name.endswith(".ucl"):
            layout = load_layout(item.read_text(encoding="utf-8"), item.name, is_checked=True)
            out[layout.name] = layout
    return MappingProxyType(out)


def orders_of(layout: Layout) -> tuple[ParameterOrder, ...]:
    """The orders of a module's parameters: the layout's own, else those that another description
    has for the same names.
    """
    if layout.orders or not layout.names:
        return layout.orders
    others = [item for item in descriptions().values() if item.name != layout.name]
    same = (item.orders for item in others if item.names == layout.names and item.orders)
    return next(same, ())


def find_descriptions(path: Path) -> list[Layout]:
    """The descriptions that a folder has the files of, with everything in them that must be there.

    One file of each kind is opened, if all kinds are there by their names.
    """
    out = []
    for item in descriptions().values():
        rules = [rule for rule in item.files if not rule.optional]
        if item.name == ANY_FILE:
            continue
        firsts = [first_file(rule, path) for rule in rules]
        if all(
            name is not None and holds(rule, path / name)
            for rule, name in zip(rules, firsts, strict=True)
        ):
            out.append(item)
    return out


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
