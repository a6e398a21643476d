"""Names of parameters without what wrappers of the module add to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reshard.formats.described.faults import bad_shard
from reshard.formats.described.walk import Leaf
from reshard.language.place import NAME, NUMBER


class Unwrapped:
    """What names are without wrappers.

    A wrapper that begins with `_` goes wherever it stands as a part of a name; another one only in
    front, and only where all names have it there.

    Args:  wrappers: as the layout lists them.  names: all that there are.
           weights: those of weights; a wrapper also goes in front of one of these.
    """

    def __init__(
        self, wrappers: Sequence[str], names: Sequence[str], weights: Sequence[str] = ()
    ) -> None:
        self._inside = [wrapper for wrapper in wrappers if wrapper.startswith("_")]
        front = [wrapper for wrapper in wrappers if not wrapper.startswith("_")]
        self._front: list[str] = []
        self._any, self._weights = front, frozenset(weights)
        left = [_without(name, self._inside) for name in names]
        while left:
            wrapper = next((w for w in front if all(n.startswith(w) for n in left)), None)
            if wrapper is None:
                break
            self._front.append(wrapper)
            left = [name.removeprefix(wrapper) for name in left]

    def name(self, name: str) -> str:
        """The name of a parameter."""
        out = _without(name, self._inside)
        for wrapper in self._front:
            out = out.removeprefix(wrapper)
        for wrapper in self._any:
            if out not in self._weights and out.removeprefix(wrapper) in self._weights:
                out = out.removeprefix(wrapper)
        return out


def name_numbers(leaves: Sequence[Leaf]) -> list[Leaf]:
    """What files hold by number, by name where each file names the numbers that it has.

    Raises: ReshardError[bad-shard].
    """
    names = {
        (leaf.file.path, int(leaf.bindings[NUMBER])): str(leaf.value)
        for leaf in leaves
        if leaf.entry.role == "named" and NUMBER in leaf.bindings
    }
    if not names:
        return list(leaves)
    out: list[Leaf] = []
    without = dict.fromkeys(names)
    for leaf in leaves:
        if leaf.entry.role == "number" and isinstance(leaf.value, (list, tuple)):
            listed = [names.get((leaf.file.path, number)) for number in leaf.value]
            leaf = replace(leaf, value=[name for name in listed if name is not None])
        elif leaf.entry.role in ("state", "states") and NUMBER in leaf.bindings:
            key = leaf.file.path, int(leaf.bindings[NUMBER])
            if key not in names:
                raise bad_shard(leaf, f"number {key[1]} has no name")
            without.pop(key, None)
            rest = {k: v for k, v in leaf.bindings.items() if k != NUMBER}
            leaf = replace(leaf, bindings={**rest, NAME: names[key]})
        out.append(leaf)
    for leaf in leaves:
        number = leaf.bindings.get(NUMBER)
        if leaf.entry.role == "named" and (leaf.file.path, number) in without:
            raise bad_shard(leaf, f"`{leaf.value}` has no states")
    return out


def _without(name: str, wrappers: Sequence[str]) -> str:
    """A name without wrappers, wherever they stand as a part of it."""
    for wrapper in wrappers:
        while True:
            if name.startswith(wrapper):
                name = name.removeprefix(wrapper)
            elif f".{wrapper}" in name:
                name = name.replace(f".{wrapper}", ".")
            else:
                break
    return name
