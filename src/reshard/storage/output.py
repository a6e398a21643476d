"""A folder that appears whole or not at all.

Everything is written into a hidden folder beside the destination; `commit` makes it durable and
renames it.  A run that dies leaves only the hidden folder, which the next run clears away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from reshard.errors import ReshardError, output_error

_MARK = ".reshard-partial"
"""What the name of a hidden folder ends with."""

_WRITTEN_BY_TOOLS = (
    "manifest.json",
    "latest",
    "latest_universal",
    "latest_checkpointed_iteration.txt",
    ".metadata",
    "model.safetensors.index.json",
    "model.safetensors",
    "config.json",
)
"""Files by which a folder is known to be a checkpoint, which `--force` may replace."""


class OutputFolder:
    """A destination that is being written; leaves nothing behind unless it is committed."""

    def __init__(self, dst: Path, partial: Path, lock: int) -> None:
        self.path = dst
        self._partial = partial
        self._lock = lock
        self._open: dict[str, int] = {}
        self._done = False

    @staticmethod
    def create(dst: Path, force: bool = False) -> OutputFolder:
        """Begin to write a destination.

        Args:  dst: must not exist, or be an empty folder, or a checkpoint with `force`.
        Raises: ReshardError[output-exists | output-foreign | output-parent-missing | output-busy |
                output-unwritable].
        """
        dst = Path(os.path.abspath(dst))
        check_destination(dst, force)
        partial = dst.parent / f".{dst.name}{_MARK}"
        with _as_output_error(dst):
            lock = os.open(dst.parent / f".{dst.name}.reshard-lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise output_error(
                "output-busy",
                f"{dst} is being written by another run",
                helps=["wait until it has ended, or choose another destination"],
            ) from None
        try:
            with _as_output_error(dst):
                if partial.exists():
                    shutil.rmtree(partial)
                partial.mkdir()
        except BaseException:
            os.close(lock)
            raise
        _allow_many_files()
        return OutputFolder(dst, partial, lock)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def open_file(self, name: str, nbytes: int) -> int:
        """Create a file of its final size.

        Args:  name: relative to the destination.
        Returns: a descriptor that stays open until commit or abort.
        Raises: ReshardError[disk-full | output-unwritable]; ValueError for a name that leads out.
        """
        known = self._open.get(name)
        if known is not None:
            return known
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise ValueError(f"{name!r} leads out of the destination")
        path = self._partial / name
        with _as_output_error(self.path, nbytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self._open[name] = fd
            _allocate(fd, nbytes)
        return fd

    def write(self, name: str, byte_offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes into a file that was opened.

        Raises: ReshardError[disk-full | output-unwritable].
        """
        fd = self._open[name]
        view = memoryview(data)
        with _as_output_error(self.path, len(view)):
            while view:
                count = os.pwrite(fd, view, byte_offset)
                view = view[count:]
                byte_offset += count

    def commit(self, last: str | None = None) -> None:
        """Make everything durable and put it in place.

        Args:  last: a file that marks the folder as complete; its bytes reach the disk last.
        Raises: ReshardError[output-exists | output-unwritable | disk-full].
        """
        with _as_output_error(self.path):
            for name, fd in self._open.items():
                if name != last:
                    os.fsync(fd)
            if last is not None:
                os.fsync(self._open[last])
            self._close()
            for folder, _, _ in os.walk(self._partial):
                _sync_folder(Path(folder))
            self._replace()
            _sync_folder(self.path.parent)
        self._done = True
        self._release()

    def _replace(self) -> None:
        try:
            os.rename(self._partial, self.path)  # an empty folder is replaced in one step
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = self.path.parent / f".{self.path.name}.reshard-old"
        if old.exists():
            shutil.rmtree(old)
        os.rename(self.path, old)
        os.rename(self._partial, self.path)
        shutil.rmtree(old)

    def abort(self) -> None:
        """Remove everything that was written, unless it was committed."""
        if self._done:
            return
        self._done = True
        self._close()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._release()

    def _close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path.parent / f".{self.path.name}.reshard-lock")
        os.close(self._lock)


def check_destination(dst: Path, force: bool = False) -> None:
    """Refuse a destination that could not be written, or must not be; touches nothing.

    Raises: ReshardError[output-exists | output-foreign | output-parent-missing].
    """
    if not dst.parent.is_dir():
        raise output_error(
            "output-parent-missing",
            f"the folder {dst.parent} does not exist",
            notes=[f"{dst} would be made in it"],
            helps=["make it first, or correct the path"],
        )
    if not (dst.exists() or dst.is_symlink()):
        return
    if dst.is_symlink() or not dst.is_dir():
        raise output_error(
            "output-foreign",
            f"{dst} is not a folder",
            notes=["reshard never replaces a file or a link"],
            helps=["choose another destination"],
        )
    names = sorted(os.listdir(dst))
    if not names:
        return
    if not force:
        raise output_error(
            "output-exists",
            f"{dst} exists and is not empty",
            notes=[f"it holds {len(names)} entries, e.g. `{names[0]}`"],
            helps=["choose another destination, or replace this one with `--force`"],
        )
    if not any(name in names for name in _WRITTEN_BY_TOOLS):
        raise output_error(
            "output-foreign",
            f"{dst} does not look like a checkpoint, so `--force` does not replace it",
            notes=[f"it holds {len(names)} entries, e.g. `{names[0]}`"],
            helps=["remove it yourself, or choose another destination"],
        )


def _allocate(fd: int, nbytes: int) -> None:
    """Reserve the bytes where the file system can, so that a full disk shows at the start."""
    if not nbytes:
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, nbytes)


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


@contextlib.contextmanager
def _as_output_error(dst: Path, nbytes: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explained(dst, nbytes, error) from None


def _explained(dst: Path, nbytes: int, error: OSError) -> ReshardError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(dst.parent).free
        return output_error(
            "disk-full",
            f"there is no room for {dst}",
            notes=[f"{nbytes} bytes more are needed at once, {free} are free"],
            helps=["make room, or choose a destination on another disk"],
        )
    return output_error(
        "output-unwritable",
        f"{dst} cannot be written",
        notes=[error.strerror or str(error)],
        helps=["check the permissions of its folder, or choose another destination"],
    )
