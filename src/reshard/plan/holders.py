"""Which local tensors hold a box of an atom."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Generic, TypeVar

from reshard.algebra.box import Box
from reshard.dtypes import DType
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
        self._rules = [Near(holders) for holders in rules.values()]
        self._first = next(iter(rules.values()), [])
        self.is_averaged = bool(averaged)
        if averaged:
            _check_averaged(key, rules.values(), averaged)

    @cached_property
    def of_first(self) -> tuple[int, DType | None]:
        """How many elements the first place of each holds, and their type; None for several."""
        numel = 0
        dtypes: set[DType] = set()
        for holder in self._first:
            for part in holder.first:
                numel += part.piece.box.volume
                dtypes.add(part.dtype)
        return numel, dtypes.pop() if len(dtypes) == 1 else None

    def find(self, box: Box, *, first: bool = False) -> list[Held]:
        """The largest boxes of which every place holds all, together the part that is stored.

        Args:  first: one place is enough.
        """
        if not self._rules:
            return []
        boxes: list[Held] = [(box, ())]
        for rule in self._rules[:1] if first else self._rules:
            boxes = [
                common
                for box, places in boxes
                for holder in rule.near(box)
                for common in holder.refine(box, places, first)
            ]
        return boxes


class _Holder:
    """One whole tensor's box of an atom."""

    __slots__ = ("_parts", "_replicas", "box")

    def __init__(self, parts: Sequence[StoredPart]) -> None:
        self._parts = parts
        self._replicas: list[Near[Stored]] | None = None
        self.box = _hull([part.piece.box for part in parts])

    def refine(self, box: Box, places: tuple[StoredPart, ...], first: bool) -> list[Held]:
        """The parts of a box that every replica holds, with places of the box and those here."""
        if len(self._parts) == 1:
            common = self.box.intersect(box)
            return [] if common is None else [(common, (*places, self._parts[0]))]
        if self._replicas is None:
            by_replica = replicas(self._parts).values()
            self._replicas = [Near([Stored(part) for part in parts]) for parts in by_replica]
        boxes: list[Held] = [(box, places)]
        for replica in self._replicas[:1] if first else self._replicas:
            boxes = [
                (common, (*places, stored.part))
                for box, places in boxes
                for stored in replica.near(box)
                if (common := stored.box.intersect(box)) is not None
            ]
        return boxes

    @property
    def first(self) -> Sequence[StoredPart]:
        """The parts of the first replica."""
        return self._parts if len(self._parts) == 1 else next(iter(replicas(self._parts).values()))

    @property
    def varying(self) -> set[str]:
        """The mesh axes along which there are replicas."""
        coords = [dict(coord) for coord in replicas(self._parts)]
        return {axis for coord in coords for axis in coord if coord[axis] != coords[0].get(axis)}


class Stored:
    """A part with its box."""

    __slots__ = ("box", "part")

    def __init__(self, part: StoredPart) -> None:
        self.part = part
        self.box = part.piece.box


_Boxed = TypeVar("_Boxed", bound="_Holder | Stored")


class Near(Generic[_Boxed]):
    """Things with a box, found by the axis along which they differ most.

    Where that axis tells groups of them apart, each group is looked through by its next axis:
    experts first by expert, and then by layer.
    """

    __slots__ = ("_axis", "_groups", "_items", "_longest", "_starts")

    def __init__(self, items: Sequence[_Boxed]) -> None:
        self._items: list[_Boxed] = list(items)
        self._groups: list[Near[_Boxed]] = []
        self._starts: list[int] = []
        self._axis = 0
        self._longest = 0
        rank = len(items[0].box.lo)
        if not rank or len(items) == 1:
            return
        self._axis = axis = max(range(rank), key=lambda a: len({item.box.lo[a] for item in items}))
        self._items.sort(key=lambda item: item.box.lo[axis])
        self._starts = [item.box.lo[axis] for item in self._items]
        self._longest = max(item.box.size[axis] for item in self._items)
        starts = list(dict.fromkeys(self._starts))
        is_apart = all(b - a >= self._longest for a, b in pairwise(starts))
        if is_apart and _SMALL < len(starts) < len(items):
            bounds = [bisect_left(self._starts, start) for start in starts]
            spans = zip(bounds, [*bounds[1:], len(items)], strict=True)
            self._groups = [Near(self._items[a:b]) for a, b in spans]
            self._starts = starts
            self._items = []

    def near(self, box: Box) -> Sequence[_Boxed]:
        """Those that may have elements of a box."""
        if not self._starts:
            return self._items
        lo = box.lo[self._axis]
        first = bisect_right(self._starts, lo - self._longest)
        last = bisect_left(self._starts, lo + box.size[self._axis])
        if not self._groups:
            return self._items[first:last]
        if last - first == 1:
            return self._groups[first].near(box)
        return [item for group in self._groups[first:last] for item in group.near(box)]


_SMALL = 4
"""Groups up to this number are not worth an index of each."""


def _hull(boxes: Sequence[Box]) -> Box:
    """The least box that holds all of these."""
    if len(boxes) == 1:
        return boxes[0]
    lo = tuple(map(min, *(box.lo for box in boxes)))
    hi = tuple(map(max, *(box.hi for box in boxes)))
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
