"""From a wanted array to the copies that fill it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Literal

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, moves
from reshard.errors import layout_error, source_error
from reshard.plan.arrangement import Arrangement, StoredPart
from reshard.plan.catalog import Coord
from reshard.plan.output import PlacedSpec
from reshard.plan.plan import Array, ArraySpec, Copy, Origin, Placed, Plan
from reshard.plan.prove import replicas, show_coord

OnDrift = Literal["error", "average", "first"]


def build_plan(
    arrangement: Arrangement, placed: Iterable[PlacedSpec], *, on_drift: OnDrift = "error"
) -> Plan:
    """The plan that makes every placed array from what the arrangement stores.

    Raises: ReshardError[not-stored | averaged-copies].
    """
    builder = Builder(arrangement, on_drift)
    return Plan(
        arrangement.catalog.root,
        tuple(
            Placed(builder.array(item.spec), item.file, item.byte_offset, item.digest, item.crc)
            for item in placed
        ),
    )


def build_array(arrangement: Arrangement, spec: ArraySpec, *, on_drift: OnDrift = "error") -> Array:
    """One array with its copies.

    Raises: ReshardError[not-stored | averaged-copies].
    """
    return Builder(arrangement, on_drift).array(spec)


class Builder:
    """Makes arrays; keeps the parts of each atom sorted so that many arrays can be cut from one."""

    def __init__(self, arrangement: Arrangement, on_drift: OnDrift) -> None:
        self._arrangement = arrangement
        self._on_drift = on_drift
        self._sorted: dict[tuple[str, str], list[_Replica]] = {}

    def array(self, spec: ArraySpec) -> Array:
        """The array of a spec."""
        copies: list[Copy] = []
        for key, piece in spec.segments:
            if piece.box.volume:
                copies += self._copies(key, spec.state, piece)
        copies.sort(key=lambda copy: copy.move.dst_offset)
        return Array(spec, tuple(copies))

    def _copies(self, key: str, state: str, dst: Piece) -> list[Copy]:
        found = self._replicas(key, state)
        mode: Literal["agree", "first", "mean"] = "agree"
        averaged = self._arrangement.averaged.get(key, ())
        if averaged and len(found) > 1:
            mode = "mean"
            varying = {
                axis
                for replica in found
                for axis, index in replica.coord
                if any(dict(other.coord).get(axis) != index for other in found)
            }
            if not varying <= set(averaged):
                raise layout_error(
                    "averaged-copies",
                    f"`{key}` is averaged over {', '.join(averaged)} but also copied over "
                    f"{', '.join(sorted(varying - set(averaged)))}",
                    helps=["name every axis along which it is copied in `averaged over`"],
                )
        elif self._on_drift == "average":
            mode = "mean"
        elif self._on_drift == "first":
            mode = "first"
        todo: list[tuple[Box, tuple[StoredPart, ...]]] = [(dst.box, ())]
        for replica in found if mode != "first" else found[:1]:
            todo = [
                (common, (*held, part))
                for box, held in todo
                for part in replica.near(box)
                if (common := part.piece.box.intersect(box)) is not None
            ]
        if sum(box.volume for box, _ in todo) != dst.box.volume:
            held = sum(box.volume for box, _ in todo)
            raise source_error(
                "not-stored",
                f"the source stores {held} of {dst.box.volume} elements that are wanted of "
                f"`{key}` ({state})",
            )
        single = len(found) == 1
        return [
            Copy(
                tuple(
                    Origin(
                        part.file,
                        part.byte_offset,
                        part.literal,
                        part.dtype,
                        move,
                        show_coord(part.coord),
                    )
                    for part, move in zip(
                        parts, moves(box, [part.piece for part in parts], dst), strict=True
                    )
                ),
                "first" if single else mode,
                key,
                box.lo,
            )
            for box, parts in todo
        ]

    def _replicas(self, key: str, state: str) -> list[_Replica]:
        known = self._sorted.get((key, state))
        if known is None:
            stored = self._arrangement.parts.get((key, state), ())
            known = [_Replica(coord, parts) for coord, parts in replicas(stored).items()]
            self._sorted[key, state] = known
        return known


class _Replica:
    """The parts of one replica, found by the axis along which they are cut most."""

    def __init__(self, coord: Coord, parts: Sequence[StoredPart]) -> None:
        self.coord = coord
        rank = len(parts[0].piece.box.lo)
        self._axis = max(
            range(rank), key=lambda a: len({p.piece.box.lo[a] for p in parts}), default=0
        )
        self._parts = sorted(parts, key=self._start) if rank else list(parts)
        self._starts = [self._start(part) for part in self._parts] if rank else []
        self._longest = max((p.piece.box.size[self._axis] for p in parts), default=0) if rank else 0

    def _start(self, part: StoredPart) -> int:
        return part.piece.box.lo[self._axis]

    def near(self, box: Box) -> Sequence[StoredPart]:
        """The parts that may have elements of a box."""
        if not self._starts:
            return self._parts
        lo = box.lo[self._axis]
        first = bisect_left(self._starts, lo - self._longest)
        last = bisect_right(self._starts, lo + box.size[self._axis])
        return self._parts[first:last]
