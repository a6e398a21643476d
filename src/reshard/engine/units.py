"""How a plan is cut into pieces of work: windows of large arrays, and handfuls of small ones."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from reshard.engine.fill import Filler
from reshard.plan.plan import Placed, Plan
from reshard.store.digest import Digest, new_digest
from reshard.store.source_files import SourceFiles

SMALL_NBYTES = 64 << 10
"""Arrays up to this size are done together with their neighbours."""

MAX_TOGETHER = 512
"""Small arrays in one piece of work."""

TRANSPOSED_WINDOWS = 8
"""How many times longer a window is that turns rows of a source into columns."""


class Track:
    """A large array on its way: its windows are filled by any thread and digested in order.

    Args:  is_noted: it is digested whatever the target wants.
    """

    def __init__(
        self, index: int, placed: Placed, files: SourceFiles, buffer_nbytes: int, is_noted: bool
    ) -> None:
        self.index = index
        self.placed = placed
        self.filler = Filler(placed.array, files)
        self.window = window_numel(self.filler, buffer_nbytes)
        self.turn = 0
        self.digest: Digest | None = new_digest() if placed.digest or is_noted else None
        self.crc = 0
        self.written = 0
        self.moved = threading.Condition()


@dataclass(frozen=True, slots=True)
class Window:
    """The elements `[start, stop)` of a large array."""

    track: Track
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Handful:
    """Small arrays that follow each other in the plan.

    Args:  items: with their positions in the plan.  nbytes: of all of them.
    """

    items: tuple[tuple[int, Placed], ...] = field(repr=False)
    nbytes: int


def window_numel(filler: Filler, buffer_nbytes: int) -> int:
    """Elements of an array that are made at once."""
    longer = TRANSPOSED_WINDOWS if filler.is_transposing else 1
    return max(1, buffer_nbytes * longer // filler.array.spec.dtype.itemsize)


def units(
    plan: Plan,
    files: SourceFiles,
    buffer_nbytes: int,
    done: Collection[int] = (),
    *,
    is_noted: bool = False,
) -> Iterator[Window | Handful]:
    """The work of a plan in the order of its arrays.

    Args:  done: positions of arrays that are left out.  is_noted: as for `Track`.
    """
    few: list[tuple[int, Placed]] = []
    nbytes = 0
    for index, placed in enumerate(plan.placed):
        if index in done:
            continue
        size = placed.array.spec.nbytes
        small = size <= min(SMALL_NBYTES, buffer_nbytes)
        if few and (not small or nbytes + size > buffer_nbytes or len(few) == MAX_TOGETHER):
            yield Handful(tuple(few), nbytes)
            few, nbytes = [], 0
        if small:
            few.append((index, placed))
            nbytes += size
            continue
        track = Track(index, placed, files, buffer_nbytes, is_noted)
        numel = placed.array.spec.numel
        for start in range(0, numel, track.window):
            yield Window(track, start, min(start + track.window, numel))
    if few:
        yield Handful(tuple(few), nbytes)
