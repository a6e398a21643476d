"""Opens what must be an ordinary file: a pipe or a device could block, or never end."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from reshard.errors import ReshardError, source_error

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_NOTE_NBYTES = 4096
_PIECE_NBYTES = 1 << 30
"""One call reads at most so much; systems stop at 2 GiB."""


class FileTooLargeError(OSError):
    """A file has more bytes than may be read whole.

    Args:  nbytes: of the file.  limit: at most so many are read.
    """

    def __init__(self, nbytes: int, limit: int) -> None:
        super().__init__(errno.EFBIG, f"it has {nbytes} bytes, and at most {limit} are read")
        self.nbytes = nbytes
        self.limit = limit


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor of an ordinary file, for reading; never waits.

    Raises: OSError, also for what is no ordinary file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind == stat.S_IFREG:
        return fd
    os.close(fd)
    what = _KINDS.get(kind, "something else")
    raise OSError(errno.EINVAL, f"it is {what}, not a file", os.fspath(path))


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """All bytes of an ordinary file.

    Args:  limit: of bytes.
    Raises: OSError; of a larger file, FileTooLargeError.
    """
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise FileTooLargeError(size, limit)
        pieces, rest = [], size
        while rest and (piece := os.read(fd, min(_PIECE_NBYTES, rest))):
            pieces.append(piece)
            rest -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def pread_regular(path: str | os.PathLike[str], byte_offset: int, nbytes: int) -> bytes:
    """Some bytes of an ordinary file; fewer where it ends.

    Raises: OSError.
    """
    fd = open_regular(path)
    try:
        return os.pread(fd, nbytes, byte_offset)
    finally:
        os.close(fd)


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """All bytes of a file that is to be there.

    Args:  limit: of bytes.
    Raises: ReshardError[source-unreadable].
    """
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise unreadable(path, error) from None


def read_note(path: str | os.PathLike[str]) -> str:
    """The text of a file of one word, such as the one that names the last step.

    Raises: ReshardError[source-unreadable].
    """
    return read_file(path, _NOTE_NBYTES).decode("utf-8", "replace").strip()


@contextlib.contextmanager
def as_source_error(path: Path) -> Iterator[None]:
    """Turn what the system says into an error of ours.

    Args:  path: what is read, where the system does not say of which file it speaks.
    """
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else str(path)
        raise unreadable(named, error) from None


def unreadable(path: str | os.PathLike[str], error: OSError) -> ReshardError:
    """The error for a file that cannot be read."""
    is_another = error.errno in (errno.EFBIG, errno.EINVAL)  # too large, or a pipe, a folder, ...
    return source_error(
        "source-unreadable",
        f"`{os.fspath(path)}` cannot be read: {(error.strerror or str(error)).lower()}",
        helps=[
            "replace it with the file that the framework wrote"
            if is_another
            else "check that the file exists, that you may read it, and that its disk has no errors"
        ],
    )
