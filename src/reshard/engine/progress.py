"""How far something that takes a while has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Args:  nbytes_done, nbytes_total: of what is read or written.
           label: of the tensor or file that was done last.
           title: of the part of the work that this is, where there are several; each counts its
                  bytes from zero.
    """

    nbytes_done: int
    nbytes_total: int
    label: str
    title: str = ""


OnProgress = Callable[[Progress], None]


class Meter:
    """Counts bytes and tells how many there are; for one thread."""

    def __init__(self, on_progress: OnProgress | None, nbytes_total: int, title: str = "") -> None:
        self._on_progress = on_progress
        self._total = nbytes_total
        self._title = title
        self._done = 0

    def add(self, nbytes: int, label: str = "") -> None:
        """So many bytes more are done."""
        self._done = min(self._done + nbytes, self._total)
        if self._on_progress is not None:
            self._on_progress(Progress(self._done, self._total, label, self._title))
