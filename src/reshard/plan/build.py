"""From a wanted array to the copies that fill it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from reshard.algebra.box import Box
from reshard.algebra.piece import Move, Piece, moves
from reshard.dtypes import DType
from reshard.errors import Diagnostic, Exit, ReshardError, source_error
from reshard.plan.arrangement import SCALAR, Arrangement, AtomState
from reshard.plan.catalog import Coord, Fragment, show_coord
from reshard.plan.collector import uncollected
from reshard.plan.holders import Holders
from reshard.plan.output import PlacedSpec
from reshard.plan.plan import (
    Array,
    ArraySpec,
    Copy,
    Mode,
    Origin,
    Placed,
    Plan,
    Region,
    RegionCopies,
)
from reshard.plan.runs import FragmentRuns
from reshard.run.states import MASTER, REMAINDER

OnDrift = Literal["error", "average", "first"]

_MODES: dict[OnDrift, Mode] = {"error": "agree", "average": "mean", "first": "first"}


@uncollected
def build_plan(
    arrangement: Arrangement, placed: Iterable[PlacedSpec], *, on_drift: OnDrift = "error"
) -> Plan:
    """The plan that makes every placed array from what the arrangement stores.

    Raises: ReshardError[not-stored | averaged-copies], for every array that cannot be made.
    """
    builder = Builder(arrangement, on_drift)
    out = []
    problems: list[Diagnostic] = []
    for item in placed:
        try:
            array = builder.array(item.spec)
        except ReshardError as error:
            problems += [item for item in error.diagnostics if item not in problems]
            continue
        out.append(Placed(array, item.file, item.byte_offset, item.digest, item.crc))
    if problems:
        raise ReshardError(problems, Exit.SOURCE)
    return Plan(arrangement.catalog.root, tuple(out))


@uncollected
def build_arrays(
    arrangement: Arrangement, specs: Iterable[ArraySpec], *, on_drift: OnDrift = "error"
) -> list[Array]:
    """Some arrays with their copies: those of one rank, say.

    Raises: ReshardError[not-stored | averaged-copies].
    """
    builder = Builder(arrangement, on_drift)
    return [builder.array(spec) for spec in specs]


def build_array(arrangement: Arrangement, spec: ArraySpec, *, on_drift: OnDrift = "error") -> Array:
    """One array with its copies.

    Raises: ReshardError[not-stored | averaged-copies].
    """
    return Builder(arrangement, on_drift).array(spec)


class Builder:
    """Makes arrays; keeps what it learns of each atom, so that many arrays can be cut from one.

    Copies that must agree are read for the first array that has them; others of the same box are
    made from one of them.
    """

    def __init__(self, arrangement: Arrangement, on_drift: OnDrift = "error") -> None:
        self._arrangement = arrangement
        self._mode = _MODES[on_drift]
        self._holders: dict[AtomState, Holders] = {}
        self._compared: set[tuple[str, str, DType, Box]] = set()
        self._runs: dict[int, FragmentRuns] = {}
        self._where: dict[Coord, str] = {}

    def array(self, spec: ArraySpec) -> Array:
        """The array of a spec.

        Raises: ReshardError[not-stored | averaged-copies].
        """
        numbers = [item for item in spec.segments if item[0].endswith(SCALAR)]
        if numbers:
            return Array(spec, (self._number(spec, numbers),))
        regions: list[Region] = []
        for key, piece in spec.segments:
            if piece.box.volume:
                regions += self._regions(key, spec, piece)
        return Array(spec, RegionCopies(regions, spec.state))

    def _regions(self, key: str, spec: ArraySpec, dst: Piece) -> list[Region]:
        holders = self._holders_of(key, spec.state)
        mode: Mode = "mean" if holders.is_averaged else self._mode
        what = key, spec.state, spec.dtype, dst.box
        if mode == "agree" and what in self._compared:
            mode = "first"
        regions = []
        stored = 0
        for box, parts in holders.find(dst.box, first=mode == "first"):
            how: Mode = mode if len(parts) > 1 else "first"
            lowered = moves(box, [part.piece for part in parts], dst)
            runs = tuple([self._runs_of(part.fragments) for part in parts])
            regions.append(Region(parts, lowered, runs, how, key))
            stored += box.volume
            if how == "agree":
                self._compared.add(what)
        if stored != dst.box.volume:
            raise _not_stored(key, spec, stored, dst.box.volume)
        return regions

    def _number(self, spec: ArraySpec, segments: Sequence[tuple[str, Piece]]) -> Copy:
        """The one number of a parameter, from everywhere that holds one for some of its atoms."""
        origins = []
        for key, piece in segments:
            parts = [
                part
                for part in self._arrangement.parts.get((key, spec.state), ())
                if part.piece.box.intersect(piece.box) is not None
            ]
            boxes = {part.piece.box for part in parts}
            if sum(box.volume for box in boxes) != piece.box.volume:
                raise _not_stored(key, spec, len(boxes), piece.box.volume)
            for part in parts:
                fragment = part.fragments[0]
                move = Move((), part.piece.offset - fragment.start, (), piece.offset, ())
                where = self._name(part.coord)
                origins.append(
                    Origin(
                        fragment.file,
                        fragment.byte_offset,
                        fragment.literal,
                        part.dtype,
                        move,
                        where,
                    )
                )
        places = tuple(dict.fromkeys(origins))  # atoms of one stored tensor have one number
        mode = self._mode if len(places) > 1 else "first"
        return Copy(places if mode != "first" else places[:1], mode, segments[0][0])

    def _holders_of(self, key: str, state: str) -> Holders:
        known = self._holders.get((key, state))
        if known is None:
            stored = MASTER if state == REMAINDER else state
            parts = self._arrangement.parts.get((key, stored), ())
            averaged = self._arrangement.averaged.get(key, ())
            known = self._holders[key, state] = Holders(key, parts, averaged)
        return known

    def _runs_of(self, fragments: tuple[Fragment, ...]) -> FragmentRuns:
        known = self._runs.get(id(fragments))
        if known is None:
            known = self._runs[id(fragments)] = FragmentRuns(fragments)
        return known

    def _name(self, coord: Coord) -> str:
        known = self._where.get(coord)
        if known is None:
            known = self._where[coord] = show_coord(coord)
        return known


def has_remainders(arrangement: Arrangement, keys: Iterable[str]) -> bool:
    """Whether the source stores the lower halves of all master weights of some atoms by themselves,
    so that an array of the state `REMAINDER` can be made of them.
    """
    found = [
        fragment.upper is not None
        for key in keys
        for part in arrangement.parts.get((key, MASTER), ())
        for fragment in part.fragments
    ]
    return bool(found) and all(found)


def _not_stored(key: str, spec: ArraySpec, held: int, wanted: int) -> ReshardError:
    return source_error(
        "not-stored",
        f"the source stores only {held} of {wanted} elements of `{key}` ({spec.state})",
        notes=[f"needed for `{spec.label}`"],
        helps=["leave this state out with `--states`, or look for a missing file"],
    )
