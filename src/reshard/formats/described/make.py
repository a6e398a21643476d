"""Makes trees of places: the other way of `tree.find`."""

from __future__ import annotations

from reshard.formats.described.tree import At, Where
from reshard.language.place import GROUP, NUMBER, Bindings, Hole, Item, Key, Place, Rest


def where_of(place: Place, bindings: Bindings) -> Where:
    """Where a place is when its holes stand for these.

    Raises: KeyError for a hole that is not among them; ValueError for `*`.
    """
    out: list[At] = []
    for step in place.steps:
        if isinstance(step, Rest):
            break
        if isinstance(step, Item):
            index = bindings[step.index.name] if isinstance(step.index, Hole) else step.index
            if not isinstance(index, int):
                raise ValueError("an item without a number cannot be made")
            out.append(At(index, is_item=True))
        else:
            out.append(At(_key(step, bindings)))
    return tuple(out)


def _key(step: Key, bindings: Bindings) -> object:
    """A key: a number where it is one of torch's numbers alone, else a text."""
    pieces = step.pattern.pieces
    if len(pieces) == 1 and isinstance(pieces[0], Hole) and pieces[0].name in (NUMBER, GROUP):
        return bindings[pieces[0].name]
    return step.pattern.fill(bindings)


class Tree:
    """Nested dicts and lists, built from places."""

    def __init__(self) -> None:
        self.root: object = {}
        self.is_empty = True

    def put(self, where: Where, value: object) -> None:
        """Put a value at a place; a dict at one that holds a dict is merged into it."""
        self.is_empty = False
        if not where:
            self.root = self._merged(self.root, value)
            return
        self.root = self._into(self.root, where, value)

    def _into(self, node: object, where: Where, value: object) -> object:
        at, rest = where[0], where[1:]
        if at.is_item:
            items = node if isinstance(node, list) else []
            assert isinstance(at.value, int)
            items += [None] * (at.value + 1 - len(items))
            old = items[at.value]
            items[at.value] = self._into(old, rest, value) if rest else self._merged(old, value)
            return items
        held = node if isinstance(node, dict) else {}
        old = held.get(at.value)
        held[at.value] = self._into(old, rest, value) if rest else self._merged(old, value)
        return held

    @staticmethod
    def _merged(old: object, value: object) -> object:
        if isinstance(old, dict) and isinstance(value, dict):
            return {**old, **value}
        if isinstance(old, list) and isinstance(value, list) and len(old) == len(value):
            return [Tree._merged(a, b) for a, b in zip(old, value, strict=True)]
        return value
