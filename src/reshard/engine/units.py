"""How a plan is cut into pieces of work: large arrays in windows, and handfuls of small ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import length_hint

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
    """A large array on its way, in windows: any thread fills the next one, and they are digested in
    order.

    Args:  is_noted: it is digested whatever the target wants.
    """

    def __init__(
        self, index: int, placed: Placed, files: SourceFiles, buffer_nbytes: int, is_noted: bool
    ) -> None:
        self.index = index
        self.placed = placed
        self.filler = Filler(placed.array, files)
        self.window = window_numel(self.filler, buffer_nbytes)
        self.starts = iter(range(0, placed.array.spec.numel, self.window))
        self.turn = 0
        self.digest: Digest | None = new_digest() if placed.digest or is_noted else None
        self.crc = 0
        self.written = 0
        self.moved = threading.Condition()


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


class Work:
    """The arrays of a plan, handed out file by file; safe to use from several threads.

    Each thread has an output file of its own while there are several: two that write one file wait
    for each other. Then they take arrays of one file in turn, and at last windows of one array.

    Args:  done: positions of arrays that are left out.  is_noted: as for `Track`.
    """

    def __init__(
        self,
        plan: Plan,
        files: SourceFiles,
        buffer_nbytes: int,
        done: Collection[int] = (),
        *,
        is_noted: bool = False,
    ) -> None:
        self._files = files
        self._buffer_nbytes = buffer_nbytes
        self._is_noted = is_noted
        self._lock = threading.Lock()
        queues: dict[str, deque[tuple[int, Placed]]] = {}
        for index, placed in enumerate(plan.placed):
            if index not in done:
                queues.setdefault(placed.file, deque()).append((index, placed))
        self._untouched = deque(queues.values())
        self._begun: list[deque[tuple[int, Placed]]] = []
        self._tracks: list[Track] = []

    def take(self, own: Own) -> Track | Handful | None:
        """What a thread does next; None where nothing is left.

        Args:  own: what the thread took before, and takes from now on.
        """
        with self._lock:
            while not own.queue:
                if self._untouched:
                    own.queue = self._untouched.popleft()
                    self._begun = [*filter(None, self._begun), own.queue]
                    continue
                self._begun = [queue for queue in self._begun if queue]
                if not self._begun:
                    return next(iter(self._unfinished()), None)
                own.queue = max(self._begun, key=len)
            unit = self._next(own.queue)
            if isinstance(unit, Track):
                self._tracks = [*self._unfinished(), unit]
            return unit

    def _unfinished(self) -> list[Track]:
        """Arrays of which some windows are not taken yet."""
        return [track for track in self._tracks if length_hint(track.starts)]

    def _next(self, queue: deque[tuple[int, Placed]]) -> Track | Handful:
        few: list[tuple[int, Placed]] = []
        nbytes = 0
        most = min(SMALL_NBYTES, self._buffer_nbytes)
        while queue:
            size = queue[0][1].array.spec.nbytes
            if few and (
                size > most or nbytes + size > self._buffer_nbytes or len(few) == MAX_TOGETHER
            ):
                break
            index, placed = queue.popleft()
            if size > most:
                return Track(index, placed, self._files, self._buffer_nbytes, self._is_noted)
            few.append((index, placed))
            nbytes += size
        return Handful(tuple(few), nbytes)


class Own:
    """Of which output file a thread takes arrays."""

    __slots__ = ("queue",)

    def __init__(self) -> None:
        self.queue: deque[tuple[int, Placed]] | None = None
