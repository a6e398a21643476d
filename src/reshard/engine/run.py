"""Runs a plan: reads, converts, digests, and writes in bounded memory, on a few threads."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping

import numpy as np

from reshard.engine.fill import Filler
from reshard.engine.gather import Gatherer
from reshard.engine.progress import Progress
from reshard.engine.units import Handful, Own, Track, Work
from reshard.plan.output import Written
from reshard.plan.plan import Placed, Plan
from reshard.store.digest import crc32, digest_bytes
from reshard.store.journal import Record
from reshard.store.source_files import SourceFiles
from reshard.store.store import Destination, NotingDestination

BUFFER_NBYTES = 1 << 20
MAX_THREADS = 8


def default_threads() -> int:
    """As many threads as there are processors for this process, up to 8."""
    return min(len(os.sched_getaffinity(0)), MAX_THREADS)


def execute(
    plan: Plan,
    folder: Destination,
    files: SourceFiles,
    *,
    threads: int | None = None,
    buffer_bytes: int = BUFFER_NBYTES,
    on_progress: Callable[[Progress], None] | None = None,
    sizes: Mapping[str, int] | None = None,
    done: Mapping[int, Written] | None = None,
) -> tuple[Written, ...]:
    """Write every array of a plan to its place.

    Args:  folder: receives the bytes.  files: of the source.
           threads: None for one per processor.  buffer_bytes: that a thread writes at once.
           on_progress: called from any thread, one call at a time.
           sizes: of the output files, in bytes; a file that it leaves out ends with its last array.
           done: arrays that need not be written again, by their positions in the plan.
    Returns: one record per array, in the order of `plan.placed`.
    Raises: ReshardError[replica-mismatch | cast-refused | source-truncated | source-changed |
            source-unreadable], whatever the folder raises; the first that happens ends the run.
    """
    ends: dict[str, int] = {}
    for placed in plan.placed:
        end = placed.byte_offset + placed.array.spec.nbytes
        ends[placed.file] = max(ends.get(placed.file, 0), end)
    for file, end in ends.items():
        folder.open_file(file, (sizes or {}).get(file, end))
    run = _Run(plan, folder, files, buffer_bytes, on_progress, done or {})
    count = max(1, threads if threads is not None else default_threads())
    if count == 1:
        run.work()
    else:
        _work_together(run, count)
    if run.error is not None:
        raise run.error
    files.check_unchanged()
    return tuple(item for item in run.written if item is not None)


def _work_together(run: _Run, count: int) -> None:
    ended: list[threading.Event] = []
    try:
        # No interrupt between the start of a thread and the note that it has to be waited for.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in range(count):
                event = threading.Event()
                worker = threading.Thread(
                    target=_work_until, args=(run, event), name=f"reshard-{number}", daemon=True
                )
                worker.start()
                ended.append(event)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for event in ended:
            event.wait()
    except BaseException as error:  # an interrupt arrives here, while the others work
        run.stop(error)
        for event in ended:
            _await(event)
        raise


def _work_until(run: _Run, ended: threading.Event) -> None:
    try:
        run.work()
    finally:
        ended.set()


def _await(event: threading.Event) -> None:
    """Wait for the end of a thread that was told to stop; it writes to files that we would close.

    `Thread.join` is of no use here: in Python 3.11 one that is interrupted takes the thread for
    ended.
    """
    while not event.is_set():
        with contextlib.suppress(KeyboardInterrupt):
            event.wait()


class _Run:
    """What the threads of one run share."""

    def __init__(
        self,
        plan: Plan,
        folder: Destination,
        files: SourceFiles,
        buffer_nbytes: int,
        on_progress: Callable[[Progress], None] | None,
        done: Mapping[int, Written],
    ) -> None:
        self.written: list[Written | None] = [done.get(i) for i in range(len(plan.placed))]
        self.error: BaseException | None = None
        self._folder = folder
        self._noting = folder if isinstance(folder, NotingDestination) else None
        self._files = files
        self._on_progress = on_progress
        self._work = Work(plan, files, buffer_nbytes, done, is_noted=self._noting is not None)
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._waiting: set[threading.Condition] = set()
        self._done = sum(item.placed.array.spec.nbytes for item in done.values())
        self._total = plan.bytes_written

    def work(self) -> None:
        """Do pieces of work until there is none left, or one of any thread failed."""
        worker = _Worker(self._files)
        own = Own()
        try:
            while self.error is None and (unit := self._work.take(own)) is not None:
                if isinstance(unit, Handful):
                    self._handful(unit, worker)
                else:
                    self._windows(unit, worker)
        except _StoppedError:
            pass
        except BaseException as error:
            self.stop(error)
            if threading.current_thread() is threading.main_thread():
                raise

    def stop(self, error: BaseException) -> None:
        """End the run; the first error is the one that is told."""
        with self._lock:
            if self.error is None:
                self.error = error
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()

    def _handful(self, unit: Handful, worker: _Worker) -> None:
        buffer = worker.buffer(unit.nbytes)
        at = 0
        pending: list[tuple[Placed, int, int]] = []  # runs of neighbours, as (first, start, stop)
        records = []
        for index, placed in unit.items:
            spec = placed.array.spec
            data = buffer[at : at + spec.nbytes]
            Filler(placed.array, self._files).fill(0, spec.numel, data, worker.gatherer)
            digest = digest_bytes(data) if placed.digest or self._noting is not None else None
            if digest is not None:
                records.append(Record(index, digest))
            self.written[index] = Written(
                placed,
                digest if placed.digest else None,
                crc32(data) if placed.crc else None,
            )
            first, start, stop = pending[-1] if pending else (placed, 0, -1)
            follows = placed.byte_offset == first.byte_offset + stop - start
            if stop == at and placed.file == first.file and follows:
                pending[-1] = first, start, at + spec.nbytes
            else:
                pending.append((placed, at, at + spec.nbytes))
            at += spec.nbytes
        for first, start, stop in pending:
            self._folder.write(first.file, first.byte_offset, buffer[start:stop])
        if self._noting is not None:
            self._noting.note(records, unit.nbytes)
        self._report(unit.nbytes, unit.items[-1][1])

    def _windows(self, track: Track, worker: _Worker) -> None:
        """Fill, digest, and write windows of an array, until all of them are taken."""
        placed = track.placed
        numel, itemsize = placed.array.spec.numel, placed.array.spec.dtype.itemsize
        for start in track.starts:
            if self.error is not None:
                raise _StoppedError
            stop = min(start + track.window, numel)
            data = worker.buffer((stop - start) * itemsize)
            track.filler.fill(start, stop, data, worker.gatherer)
            if track.digest is not None or placed.crc:
                self._await_turn(track, start)
                if track.digest is not None:
                    track.digest.update(data)
                if placed.crc:
                    track.crc = crc32(data, track.crc)
                with track.moved:
                    track.turn = stop
                    track.moved.notify_all()
            self._folder.write(placed.file, placed.byte_offset + start * itemsize, data)
            with track.moved:
                track.written += stop - start
                is_whole = track.written == numel
            if is_whole:
                self._end(track)
            self._report(len(data), placed)

    def _end(self, track: Track) -> None:
        """Note an array of which every window is written."""
        placed = track.placed
        digest = None if track.digest is None else track.digest.text()
        self.written[track.index] = Written(
            placed, digest if placed.digest else None, track.crc if placed.crc else None
        )
        if self._noting is not None and digest is not None:
            self._noting.note([Record(track.index, digest)], placed.array.spec.nbytes)

    def _await_turn(self, track: Track, start: int) -> None:
        if track.turn == start:
            return
        with track.moved:
            with self._lock:
                self._waiting.add(track.moved)
            track.moved.wait_for(lambda: track.turn == start or self.error is not None)
            if track.turn != start:
                raise _StoppedError

    def _report(self, nbytes: int, placed: Placed) -> None:
        if self._on_progress is None:
            self._done += nbytes
            return
        with self._reporting:
            self._done += nbytes
            self._on_progress(Progress(self._done, self._total, placed.array.spec.label))


class _StoppedError(Exception):
    """Another thread failed."""


class _Worker:
    """What one thread owns: a buffer that grows to what it needs, and a gatherer."""

    def __init__(self, files: SourceFiles) -> None:
        self.gatherer = Gatherer(files)
        self._buffer = np.empty(0, np.uint8).data

    def buffer(self, nbytes: int) -> memoryview:
        """A buffer of this many bytes, with anything in it."""
        if len(self._buffer) < nbytes:
            self._buffer = np.empty(nbytes, np.uint8).data
        return self._buffer[:nbytes]
