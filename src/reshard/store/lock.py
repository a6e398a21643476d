"""One run at a time for a destination: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from reshard.errors import output_error


class Lock:
    """A lock that is held."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    @staticmethod
    def take(path: Path, dst: Path) -> Lock:
        """Take the lock of a destination.

        Raises: ReshardError[output-busy | output-foreign]; OSError.
        """
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EISDIR):
                    raise
                raise _no_lock(path) from None
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size:
                    raise _no_lock(path)
                _lock(fd, dst)
                if _is_at(path, status):
                    return Lock(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # who held it has removed the file meanwhile: this one locks nobody out

    def release(self) -> None:
        """Let others in, and leave no file."""
        try:
            with contextlib.suppress(OSError):
                if _is_at(self._path, os.fstat(self._fd)):
                    os.unlink(self._path)
        finally:
            with contextlib.suppress(OSError):
                os.close(self._fd)


def _lock(fd: int, dst: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise output_error(
            "output-busy",
            f"{dst} is being written by another run",
            helps=["wait until it has ended, or choose another destination"],
        ) from None


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        current = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (current.st_dev, current.st_ino) == (status.st_dev, status.st_ino)


def _no_lock(path: Path) -> Exception:
    return output_error(
        "output-foreign",
        f"{path} is not a lock of reshard",
        notes=["a lock is an empty file, and no link"],
        helps=["remove it yourself, or choose another destination"],
    )
