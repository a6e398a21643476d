"""A folder that appears whole or not at all, and whose parts outlive the run that wrote them.

Everything is written into a hidden folder beside the destination; `commit` makes it durable and
renames it.  A run that dies leaves the hidden folder with its journal, and one that makes the same
goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from reshard.errors import ReshardError
from reshard.store.contents import content_digest
from reshard.store.destination import Places, check_destination, check_hidden, folder_inode
from reshard.store.journal import NEW, Journal, Making, Record
from reshard.store.leftovers import (
    check_partial,
    reason_against,
    remove_old,
    remove_partial,
    settle,
)
from reshard.store.lock import Lock
from reshard.store.open_files import OpenFiles
from reshard.store.output_error import as_output_error, kept_error
from reshard.store.owned import RECEIPT, receipt_bytes, written_names

SYNC_NBYTES = 1 << 30
"""So many bytes are written before what was noted is made durable."""


class OutputFolder:
    """A destination that is being written; it appears when it is committed, and not before.

    Args:  claims: what an earlier run noted, to be proved.  changed: files of the source that may
           not be what they were for it.  restarted: why an earlier run cannot
           be gone on from, in words.  is_in_place: an earlier run had ended but for its last word;
           there is nothing to do but `close`.
    """

    def __init__(
        self,
        places: Places,
        lock: Lock,
        making: Making,
        *,
        force: bool = False,
        claims: Mapping[int, Record] | None = None,
        changed: Iterable[str] = (),
        restarted: str = "",
        is_in_place: bool = False,
    ) -> None:
        self.path = places.dst
        self.claims = claims or {}
        self.changed = frozenset(changed)
        self.restarted = restarted
        self.is_in_place = is_in_place
        self._places = places
        self._lock = lock
        self._making = making
        self._force = force
        self._journal: Journal | None = None
        self._open = OpenFiles(self._opened, self._before_closing)
        self._unsynced: set[str] = set()
        self._unsynced_nbytes = 0
        self._inode: int | None = None
        self._done = False

    @staticmethod
    def create(dst: Path, force: bool = False, making: Making | None = None) -> OutputFolder:
        """Begin to write a destination, or go on with what an earlier run of the same left.

        Args:  dst: must not exist, or be an empty folder, or one that reshard wrote with `force`.
               making: what is made; None for what no other run goes on from.
        Raises: ReshardError[output-exists | output-foreign | output-parent-missing | output-busy |
                output-unwritable].
        """
        places = Places(Path(os.path.abspath(dst)))
        effective = making or Making("", "", "", {})
        with as_output_error(places.dst):
            if not places.dst.parent.is_dir():
                check_destination(places.dst, force)
            lock = Lock.take(places.lock, places.dst)
        folder: OutputFolder | None = None
        try:
            with as_output_error(places.dst):
                folder = _begin(places, lock, effective, force)
                if not folder.is_in_place and not folder.claims:
                    folder._start()
        except BaseException:
            if folder is None:
                lock.release()
            else:
                folder.abort()
            raise
        _allow_many_files()
        return folder

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._done:
            return
        failure = None
        try:
            if self._is_in_place():
                if not os.path.lexists(self._places.old):
                    self._clean()
                failure = error and kept_error(error, self.path, "", 0, 0)
            elif error is not None and self._is_worth_keeping(error):
                failure = self._keep(error)
            else:
                self.abort()
        finally:
            self._finish()
        if failure is not None and failure is not error:
            raise failure from None

    def find_kept(self, name: str, nbytes: int) -> bool:
        """Open a file that an earlier run made, for `read`; False if it is not as it should be."""
        if name in self._open:
            return True
        try:
            status = os.stat(self._path(name), follow_symlinks=False)
            is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if not is_plain or status.st_size != nbytes:
                return False
            self._open.add(name, lambda: self._opened(name))
        except OSError:
            return False
        return True

    def read(self, name: str, byte_offset: int, out: memoryview) -> int:
        """Read bytes of a file that was opened.

        Returns: how many there are.
        Raises: OSError.
        """
        with self._open.use(name) as fd:
            return os.preadv(fd, [out], byte_offset)

    def go_on(self, records: Iterable[Record], files: Iterable[str], nbytes: int) -> None:
        """Begin where an earlier run ended.

        Args:  records: the claims that were proved.  files: that they are in; all others are made
               anew.  nbytes: of the arrays.
        Raises: ReshardError[output-foreign | output-unwritable | disk-full].
        """
        kept = set(files)
        with as_output_error(self.path):
            for name in [name for name in self._open if name not in kept]:
                self._open.forget(name)
            names = self._names()
            for name in names - kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(name))
            self._start(records)
        assert self._journal is not None
        self._journal.nbytes_done = nbytes
        self._unsynced.update(kept)

    def open_file(self, name: str, nbytes: int) -> None:
        """Create a file of its final size.

        Args:  name: relative to the destination.
        Raises: ReshardError[disk-full | output-unwritable]; ValueError for a name that leads out.
        """
        if name in self._open:
            return
        path = self._path(name)
        assert self._journal is not None
        with as_output_error(self.path, nbytes):
            if name not in self._making.files:
                self._journal.add_file(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._open.add(name, lambda: os.open(path, flags, 0o644))
            with self._open.use(name) as fd:
                _allocate(fd, nbytes)

    def write(self, name: str, byte_offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes into a file that was opened.

        Raises: ReshardError[disk-full | output-unwritable].
        """
        view = memoryview(data)
        with as_output_error(self.path, len(view)), self._open.use(name) as fd:
            while view:
                count = os.pwrite(fd, view, byte_offset)
                if not count:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                view = view[count:]
                byte_offset += count
            self._unsynced.add(name)

    def note(self, records: Iterable[Record], nbytes: int) -> None:
        """Note arrays of which every byte was written.

        Now and then the files are synced, and after them the notes.

        Raises: ReshardError[disk-full | output-unwritable].
        """
        assert self._journal is not None
        self._journal.add(records, nbytes)
        self._unsynced_nbytes += nbytes
        if self._unsynced_nbytes >= SYNC_NBYTES:
            self._unsynced_nbytes = 0
            with as_output_error(self.path):
                self._sync_files()
                self._journal.sync()

    def commit(self, last: str | None = None, *, receipt: bool = False) -> None:
        """Make everything durable and put it in place.

        Args:  last: a file that marks the folder as complete; its bytes reach the disk last.
               receipt: add a file that lists all others, for a format without such a list.
        Raises: ReshardError[output-exists | output-foreign | output-unwritable | disk-full].
        """
        assert self._journal is not None
        if receipt:
            with as_output_error(self.path):
                contents = {name: self._content(name) for name in self._open}
            data = receipt_bytes(self._making.program, contents)
            self.open_file(RECEIPT, len(data))
            self.write(RECEIPT, 0, data)
        with as_output_error(self.path):
            self._unsynced.update(self._open)
            if last is not None:
                self._unsynced.discard(last)
            self._sync_files()
            if last is not None:
                self._sync_file(last)
            self._open.close()
            for folder, _, _ in os.walk(self._places.data):
                _sync_folder(Path(folder))
            self._inode = folder_inode(self._places.data)
            assert self._inode is not None
            self._journal.commit(self._inode)
            self._put_in_place()
            _sync_folder(self.path.parent)
            if os.path.lexists(self._places.old):
                remove_old(self._places)
            self._clean()
        self._finish()

    def abort(self) -> None:
        """Remove everything that was written, unless it was committed."""
        if self._done:
            return
        with contextlib.suppress(OSError):
            self._open.close()
        with contextlib.suppress(OSError, ReshardError):
            remove_partial(self._places, self._names())
        self._finish()

    def close(self) -> None:
        """End without having written anything."""
        with as_output_error(self.path):
            self._clean()
        self._finish()

    def sizes(self) -> dict[str, int]:
        """The files of the destination, with their sizes in bytes."""
        with as_output_error(self.path):
            names = written_names(self.path) - {RECEIPT}
            return {name: os.stat(self.path / name).st_size for name in sorted(names)}

    def _start(self, records: Iterable[Record] = ()) -> None:
        self._places.partial.mkdir(exist_ok=True)
        self._journal = Journal.create(self._places.journal, self._making, records)
        self._places.data.mkdir(exist_ok=True)
        if not self._open:  # all of it is new
            nbytes = sum(self._making.files.values())
            with as_output_error(self.path, nbytes):
                _check_room(os.statvfs(self._places.data), nbytes)

    def _content(self, name: str) -> tuple[int, str]:
        """The number of bytes of a file that was written, and a digest for the receipt."""

        def read(byte_offset: int, nbytes: int) -> bytes:
            out = bytearray(nbytes)
            count = self.read(name, byte_offset, memoryview(out)) if nbytes else 0
            return bytes(out[:count])

        nbytes = os.stat(self._path(name)).st_size
        return nbytes, content_digest(nbytes, read)

    def _path(self, name: str) -> Path:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise ValueError(f"{name!r} leads out of the destination")
        return self._places.data / name

    def _names(self) -> set[str]:
        """Every file that may be in the hidden folder."""
        notes = self._places.notes()
        return {*self._making.files, *self._open, *(notes.files if notes is not None else ())}

    def _sync_files(self) -> None:
        while self._unsynced:
            try:
                name = self._unsynced.pop()
            except KeyError:  # another thread took it
                return
            self._sync_file(name)

    def _sync_file(self, name: str) -> None:
        try:
            with self._open.use(name) as fd:
                os.fsync(fd)
        except OSError:
            # The system may now take the pages for written: what they hold is proof of nothing.
            if self._journal is not None:
                with contextlib.suppress(OSError):
                    self._journal.void(name)
            raise

    def _put_in_place(self) -> None:
        data, dst, old = self._places.data, self.path, self._places.old
        try:
            os.rename(data, dst)  # an empty folder is replaced in one step
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        check_destination(dst, self._force)  # what is there now may have come meanwhile
        try:
            os.rename(dst, old)
            os.rename(data, dst)
        except BaseException:
            if os.path.lexists(old) and not os.path.lexists(dst):
                os.rename(old, dst)
            raise

    def _is_worth_keeping(self, error: BaseException) -> bool:
        if not (self.claims if self._journal is None else self._journal.nbytes_done):
            return False
        if not self._making.plan:  # no run could go on from it
            return False
        if isinstance(error, KeyboardInterrupt):
            return True
        return isinstance(error, ReshardError) and all(
            item.code in KEEPING for item in error.diagnostics
        )

    def _is_in_place(self) -> bool:
        """Whether the failure came after the rename."""
        with contextlib.suppress(OSError):
            return self._inode is not None and folder_inode(self.path) == self._inode
        return False

    def _keep(self, error: BaseException) -> BaseException:
        nbytes, total = 0, sum(self._making.files.values())
        if self._journal is not None:
            nbytes = self._journal.nbytes_done
            with contextlib.suppress(OSError):
                self._sync_files()
                self._journal.sync()
        with contextlib.suppress(OSError):
            self._open.close()
        return kept_error(error, self.path, self._places.partial.name, nbytes, total)

    def _opened(self, name: str) -> int:
        return os.open(self._path(name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _before_closing(self, name: str, fd: int) -> None:
        """What could not be made durable is told to whoever has the file open, and to nobody after.

        Raises: OSError.
        """
        if name in self._unsynced:
            self._unsynced.discard(name)
            self._sync_file(name)

    def _clean(self) -> None:
        """Remove the journal of a folder that is in place; if that fails, the next run does it."""
        for name in (NEW, self._places.journal.name):
            with contextlib.suppress(OSError):
                os.unlink(self._places.partial / name)
        with contextlib.suppress(OSError):
            os.rmdir(self._places.partial)

    def _finish(self) -> None:
        if self._done:
            return
        self._done = True
        try:
            with contextlib.suppress(OSError):
                self._open.close()
            if self._journal is not None:
                with contextlib.suppress(OSError):
                    self._journal.close()
        finally:
            self._lock.release()


KEEPING = frozenset(
    (
        *("disk-full", "output-unwritable", "output-exists", "output-foreign"),
        *("source-unreadable", "source-truncated"),
    )
)
"""Errors after which what was written is still good: the same command may succeed later."""


def _begin(places: Places, lock: Lock, making: Making, force: bool) -> OutputFolder:
    """Look at what earlier runs left, and settle it; the lock is held."""
    check_hidden(places)
    notes = places.notes()
    is_in_place = places.is_in_place(notes)
    settle(places, is_in_place)
    reason = "" if notes is None else reason_against(notes, making)
    was = notes.making if notes is not None else None
    changed = was.changed(making) if was is not None else frozenset()
    if is_in_place and not reason and not changed:
        return OutputFolder(places, lock, making, is_in_place=True)
    check_destination(places.dst, force)
    names = {*making.files, *(notes.files if notes is not None else ())}
    if places.partial.exists():
        check_partial(places, names)
    if notes is not None and notes.records and not reason:
        claims = notes.records
        return OutputFolder(places, lock, making, force=force, claims=claims, changed=changed)
    if places.partial.exists():
        remove_partial(places, names)
    restarted = reason if notes is not None and (notes.records or notes.making is None) else ""
    return OutputFolder(places, lock, making, force=force, restarted=restarted)


def _allocate(fd: int, nbytes: int) -> None:
    """Give a file its size, and its blocks where that is cheap.

    It is on a disk.  In memory blocks are zeroed for that, and over a network they are written one
    by one where the server knows no better (glibc's `posix_fallocate`).
    """
    if not nbytes:
        return
    # Asking would fill the disk first, and hold that against everybody until it fails.
    _check_room(os.fstatvfs(fd), nbytes)
    if os.major(os.fstat(fd).st_dev):
        try:
            os.posix_fallocate(fd, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(fd, nbytes)


def _check_room(disk: os.statvfs_result, nbytes: int) -> None:
    """Let a full disk show at the start; one that tells no size is not asked.

    Raises: OSError.
    """
    if disk.f_blocks and nbytes > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
