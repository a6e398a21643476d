"""The files of a source, open for reading, and held to what the catalog says of them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from reshard.errors import Diagnostic, Exit, ReshardError, source_error
from reshard.plan.catalog import SourceFile
from reshard.store.regular_file import open_regular, unreadable

MAX_OPEN = 256
"""Files that are kept open; one more closes the one that was not read for the longest time."""


@dataclass(slots=True)
class _Open:
    fd: int
    users: int


@dataclass(frozen=True, slots=True)
class _State:
    """What a file cannot be given again once it was replaced, or written and its time put back."""

    inode: int
    ctime_ns: int

    @staticmethod
    def of(status: os.stat_result) -> _State:
        return _State(status.st_ino, status.st_ctime_ns)


class SourceFiles:
    """Reads ranges of a source's files; safe to use from several threads.

    Args:  root: absolute path that file names start from.
           files: as the catalog found them.  A file that it does not list may be read too; it is
                  held to what it was when it was first opened.
    """

    def __init__(self, root: str | Path, files: Iterable[SourceFile] = ()) -> None:
        self.root = Path(root)
        self._known = {file.path: file for file in files}
        self._seen: dict[str, SourceFile] = {}
        self._states: dict[str, _State] = {}
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for item in self._open.values():
                _close(item.fd)
            self._open.clear()

    @property
    def known(self) -> tuple[str, ...]:
        """The files that the catalog lists."""
        return tuple(self._known)

    def pread_into(self, file: str, byte_offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes of a file from `byte_offset` on.

        Args:  file: relative to the root.  byte_offset: absolute.  out: bytes, writable.
        Raises: ReshardError[source-truncated | source-changed | source-unreadable].
        """
        item = self._acquire(file)
        try:
            count_read = 0
            while count_read < len(out):
                try:
                    count = os.preadv(item.fd, [out[count_read:]], byte_offset + count_read)
                except OSError as error:
                    raise unreadable(self.root / file, error) from None
                if count == 0:
                    raise _truncated(self.root / file, item.fd, byte_offset, len(out))
                count_read += count
        finally:
            with self._lock:
                item.users -= 1

    def pread(self, file: str, byte_offset: int, nbytes: int) -> bytes:
        """Some bytes of a file.

        Raises: as `pread_into`.
        """
        out = bytearray(nbytes)
        self.pread_into(file, byte_offset, memoryview(out))
        return bytes(out)

    def hold(self, file: str) -> tuple[int, int]:
        """Hold a file to what it is now, or was when it was catalogued, to the end of the run.

        Returns: its size in bytes, and its time of writing in nanoseconds.
        Raises: ReshardError[source-changed | source-unreadable].
        """
        item = self._acquire(file)
        with self._lock:
            item.users -= 1
            known = self._seen[file]
        return known.nbytes, known.mtime_ns

    def identity(self, file: str) -> str:
        """What changes when a file is replaced or written, even if its size and time are kept.

        Raises: as `hold`.
        """
        nbytes, mtime_ns = self.hold(file)
        state = self._states[file]
        return f"{state.inode}:{nbytes}:{mtime_ns}:{state.ctime_ns}"

    def check_unchanged(self) -> None:
        """Prove that no file that was read has changed since it was catalogued.

        Raises: ReshardError[source-changed | source-unreadable], every file of which it is true.
        """
        problems: list[Diagnostic] = []
        for file, before in self._seen.items():
            path = self.root / file
            try:
                status = path.stat()
            except OSError as error:
                problems += unreadable(path, error).diagnostics
            else:
                problems += _changes(path, before, status, self._states[file])
        if problems:
            raise ReshardError(problems, Exit.SOURCE)

    def _acquire(self, file: str) -> _Open:
        with self._lock:
            item = self._open.get(file)
            if item is None:
                item = self._open[file] = _Open(self._open_file(file), 0)
                self._close_oldest()
            else:
                self._open.move_to_end(file)
            item.users += 1
            return item

    def _open_file(self, file: str) -> int:
        path = self.root / file
        while True:
            try:
                fd = open_regular(path)
                break
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._close_idle():
                    raise unreadable(path, error) from None
        try:
            status = os.fstat(fd)
        except OSError as error:
            _close(fd)
            raise unreadable(path, error) from None
        before = self._seen.get(file) or self._known.get(file)
        if before is None:
            before = SourceFile(file, status.st_size, status.st_mtime_ns)
        self._seen[file] = before
        state = self._states.setdefault(file, _State.of(status))
        problems = _changes(path, before, status, state)
        if problems:
            _close(fd)
            raise ReshardError(problems, Exit.SOURCE)
        return fd

    def _close_oldest(self) -> None:
        """Close what was not read for the longest time; a file that is being read stays open."""
        if len(self._open) <= MAX_OPEN:
            return
        self._close_idle(but=next(reversed(self._open)))

    def _close_idle(self, but: str | None = None) -> bool:
        """Close the file that was not read for the longest time; False if all are being read."""
        idle = next((f for f, item in self._open.items() if not item.users and f != but), None)
        if idle is None:
            return False
        _close(self._open.pop(idle).fd)
        return True


def _changes(
    path: Path, before: SourceFile, status: os.stat_result, state: _State
) -> list[Diagnostic]:
    # Some file systems give a file another inode when it is opened again; its ctime they keep.
    if status.st_size != before.nbytes:
        what = f"it had {before.nbytes} bytes and has {status.st_size} now"
    elif status.st_mtime_ns == before.mtime_ns:
        if status.st_ctime_ns == state.ctime_ns:
            return []
        what = "it was replaced, or its time of writing, permissions, or links were changed"
    else:
        what = f"it has {status.st_size} bytes as before, but was written again"
    return [
        Diagnostic(
            "source-changed",
            f"`{path}` changed while it was read",
            notes=(what,),
            helps=("wait until nothing writes to the source, then run the command again",),
        )
    ]


def _close(fd: int) -> None:
    """Close what was only read: whatever is wrong, nothing is lost."""
    with contextlib.suppress(OSError):
        os.close(fd)


def _truncated(path: Path, fd: int, byte_offset: int, nbytes: int) -> ReshardError:
    try:
        actual = os.fstat(fd).st_size
    except OSError as error:
        return unreadable(path, error)
    return source_error(
        "source-truncated",
        f"`{path}` is too short for its tensors",
        notes=[
            f"bytes {byte_offset} to {byte_offset + nbytes} are needed, but the file has {actual}",
        ],
        helps=["copy the file again from where the checkpoint was written"],
    )
