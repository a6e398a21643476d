"""Which local tensors hold a box of an atom."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from reshard.algebra.box import Box
from reshard.errors import layout_error
from reshard.plan.arrangement import StoredPart
from reshard.plan.prove import by_whole, replicas

Held = tuple[Box, tuple[StoredPart, ...]]
"""A box of an atom, and a part from each place that holds it."""


class Holders:
    """Everything that stores one state of one atom.

    An atom is stored once by each rule that holds it, there by whole tensors (one for each layer,
    say), and of these each replica is cut into local tensors.

    Args:  key: of the atom, for messages.  averaged: mesh axes whose copies are averaged.
    Raises: ReshardError[averaged-copies].
    """

    def __init__(self, key: str, parts: Iterable[StoredPart], averaged: Sequence[str]) -> None:
        rules: dict[int, list[_Holder]] = {}
        for members in by_whole(parts).values():
            rules.setdefault(members[0].rule, []).append(_Holder(members))
        self._rules = [_Near(holders) for holders in rules.values()]
        self.is_averaged = bool(averaged)
        if averaged:
            _check_averaged(key, rules.values(), averaged)

    def find(self, box: Box, *, first: bool = False) -> list[Held]:
        """The largest boxes of which every place holds all, together the part that is stored.

        Args:  first: one place is enough.
        """
        found: list[Held] = [(box, ())]
        for rule in self._rules[:1] if first else self._rules:
            found = [
                held
                for box, before in found
                for holder in rule.near(box)
                for held in holder.refine(box, before, first)
            ]
        return found if self._rules else []


class _Holder:
    """One whole tensor's box of an atom."""

    __slots__ = ("box", "replicas", "varying")

    def __init__(self, parts: Sequence[StoredPart]) -> None:
        found = replicas(parts)
        self.replicas = [_Near([_Stored(part) for part in members]) for members in found.values()]
        self.box = _hull([part.piece.box for part in parts])
        coords = [dict(coord) for coord in found]
        self.varying = {
            axis for coord in coords for axis in coord if coord[axis] != coords[0].get(axis)
        }

    def refine(self, box: Box, before: tuple[StoredPart, ...], first: bool) -> list[Held]:
        """The parts of a box that every replica holds, with the places found before and here."""
        found: list[Held] = [(box, before)]
        for replica in self.replicas[:1] if first else self.replicas:
            found = [
                (common, (*held, stored.part))
                for box, held in found
                for stored in replica.near(box)
                if (common := stored.box.intersect(box)) is not None
            ]
        return found


class _Stored:
    """A part with its box."""

    __slots__ = ("box", "part")

    def __init__(self, part: StoredPart) -> None:
        self.part = part
        self.box = part.piece.box


_Boxed = TypeVar("_Boxed", bound="_Holder | _Stored")


class _Near(Generic[_Boxed]):
    """Things with a box, found by the axis along which they differ most."""

    __slots__ = ("_axis", "_items", "_longest", "_starts")

    def __init__(self, items: Sequence[_Boxed]) -> None:
        self._items: list[_Boxed] = list(items)
        self._starts: list[int] = []
        self._axis = 0
        self._longest = 0
        rank = len(items[0].box.lo)
        if rank and len(items) > 1:
            self._axis = max(range(rank), key=lambda a: len({item.box.lo[a] for item in items}))
            self._items.sort(key=lambda item: item.box.lo[self._axis])
            self._starts = [item.box.lo[self._axis] for item in self._items]
            self._longest = max(item.box.size[self._axis] for item in self._items)

    def near(self, box: Box) -> Sequence[_Boxed]:
        """Those that may have elements of a box."""
        if not self._starts:
            return self._items
        lo = box.lo[self._axis]
        first = bisect_right(self._starts, lo - self._longest)
        last = bisect_left(self._starts, lo + box.size[self._axis])
        return self._items[first:last]


def _hull(boxes: Sequence[Box]) -> Box:
    """The least box that holds all of these."""
    lo = tuple(map(min, *(box.lo for box in boxes))) if len(boxes) > 1 else boxes[0].lo
    hi = tuple(map(max, *(box.hi for box in boxes))) if len(boxes) > 1 else boxes[0].hi
    return Box(lo, tuple(b - a for a, b in zip(lo, hi, strict=True)))


def _check_averaged(key: str, rules: Iterable[Sequence[_Holder]], averaged: Sequence[str]) -> None:
    """Refuse copies of which some are averaged and others not."""
    listed = ", ".join(f"`{axis}`" for axis in averaged)
    if len(list(rules)) > 1:
        raise layout_error(
            "averaged-copies",
            f"`{key}` is averaged over {listed}, and also stored by another rule",
            helps=["store the averaged atom by one rule only"],
        )
    varying = {axis for rule in rules for holder in rule for axis in holder.varying}
    others = sorted(varying - set(averaged))
    if others:
        shown = ", ".join(f"`{axis}`" for axis in others)
        raise layout_error(
            "averaged-copies",
            f"`{key}` is averaged over {listed}, and also copied over {shown}",
            helps=[f"average over all of them: `averaged over {', '.join([*averaged, *others])}`"],
        )
