"""A target that was planned and not written: its files are made while they are read."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reshard.engine.fill import Filler
from reshard.engine.gather import Gatherer
from reshard.plan.catalog import SourceFile
from reshard.plan.plan import Placed, Plan
from reshard.store.source_files import SourceFiles

WINDOW_NBYTES = 256 << 10
"""Bytes of an array that are made at once for reads that want fewer."""

WINDOWS = 24
"""Windows that are kept for the next read."""

Range = tuple[int, int]
"""A half-open range of bytes of a file."""


class _Made(NamedTuple):
    """An array and the bytes of its file that it is."""

    start: int
    stop: int
    filler: Filler


class MadeFiles(SourceFiles):
    """Reads the files that a plan would write, without writing them.

    What is read of an array is filled by the plan's copies there and then; all other bytes are in
    files that were written.

    Args:  plan: whose arrays are not written.  source: of the plan; closed by whoever opened it.
           folder: of the files that the plan would write.  root: that file names start from.
           holes: byte ranges by file, of the arrays that are not in the written files.
           files: as a catalog found them.
    """

    def __init__(
        self,
        plan: Plan,
        source: SourceFiles,
        *,
        folder: Path,
        root: Path,
        holes: Mapping[str, Iterable[Range]],
        files: Iterable[SourceFile] = (),
    ) -> None:
        super().__init__(root, files)
        self._source = source
        self._folder = folder
        self._made: dict[str, list[_Made]] = {}
        self._starts: dict[str, list[int]] = {}
        wanted = {(file, start) for file, ranges in holes.items() for start, _ in ranges}
        for placed in plan.placed:
            if placed.array.spec.nbytes and (placed.file, placed.byte_offset) in wanted:
                self._made.setdefault(placed.file, []).append(_made(placed, source))
        for file, items in self._made.items():
            items.sort(key=lambda item: item.start)
            self._starts[file] = [item.start for item in items]
        self._names: dict[str, str] = {}
        self._windows: OrderedDict[tuple[str, int, int], memoryview] = OrderedDict()
        self._keeping = threading.Lock()
        self._own = threading.local()

    def pread_into(self, file: str, byte_offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes that the file would have from `byte_offset` on.

        Raises: ReshardError, as `Filler.fill` and `SourceFiles.pread_into`.
        """
        name = self._name(file)
        items = self._made.get(name, [])
        at, stop = byte_offset, byte_offset + len(out)
        index = max(0, bisect_right(self._starts.get(name, []), at) - 1)
        while at < stop:
            while index < len(items) and items[index].stop <= at:
                index += 1
            item = items[index] if index < len(items) else None
            if item is not None and item.start <= at:
                end = min(stop, item.stop)
                self._make(name, index, item, at, out[at - byte_offset : end - byte_offset])
            else:
                end = stop if item is None else min(stop, item.start)
                super().pread_into(file, at, out[at - byte_offset : end - byte_offset])
            at = end

    def check_unchanged(self) -> None:
        """Prove that no file of the source changed.

        Raises: ReshardError[source-changed | source-unreadable].
        """
        self._source.check_unchanged()

    def _name(self, file: str) -> str:
        """A file's name from the folder of the target on."""
        known = self._names.get(file)
        if known is None:
            known = str((self.root / file).relative_to(self._folder))
            self._names[file] = known
        return known

    def _make(self, name: str, index: int, item: _Made, at: int, out: memoryview) -> None:
        itemsize = item.filler.array.spec.dtype.itemsize
        start, stop = at - item.start, at - item.start + len(out)
        aligned = start % itemsize == 0 and stop % itemsize == 0
        if aligned and len(out) >= WINDOW_NBYTES:
            item.filler.fill(start // itemsize, stop // itemsize, out, self._gatherer())
            return
        size = WINDOW_NBYTES - WINDOW_NBYTES % itemsize
        while start < stop:
            first = start - start % size
            window = self._window(name, index, item, first, size)
            end = min(stop, first + size)
            out[: end - start] = window[start - first : end - first]
            out = out[end - start :]
            start = end

    def _window(self, name: str, index: int, item: _Made, first: int, size: int) -> memoryview:
        key = (name, index, first)
        with self._keeping:
            known = self._windows.get(key)
            if known is not None:
                self._windows.move_to_end(key)
                return known
        spec = item.filler.array.spec
        stop = min(first + size, spec.nbytes)
        data = np.empty(stop - first, np.uint8).data
        itemsize = spec.dtype.itemsize
        item.filler.fill(first // itemsize, stop // itemsize, data, self._gatherer())
        with self._keeping:
            self._windows[key] = data
            if len(self._windows) > WINDOWS:
                self._windows.popitem(last=False)
        return data

    def _gatherer(self) -> Gatherer:
        """A gatherer of this thread's own."""
        found = getattr(self._own, "gatherer", None)
        if not isinstance(found, Gatherer):
            found = self._own.gatherer = Gatherer(self._source)
        return found


def _made(placed: Placed, source: SourceFiles) -> _Made:
    stop = placed.byte_offset + placed.array.spec.nbytes
    return _Made(placed.byte_offset, stop, Filler(placed.array, source))
