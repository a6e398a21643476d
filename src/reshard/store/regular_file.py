"""Opens what must be an ordinary file: a pipe or a device could block, or never end."""

from __future__ import annotations

import errno
import os
import stat

from reshard.errors import ReshardError, source_error

__all__ = [
    "FileTooLargeError",
    "open_regular",
    "pread_regular",
    "read_note",
    "read_regular",
    "unreadable",
]

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


class FileTooLargeError(Exception):
    """A file has more bytes than may be read whole.

    Args:  nbytes: of the file.  limit: at most so many are read.
    """

    def __init__(self, nbytes: int, limit: int) -> None:
        super().__init__(f"{nbytes} bytes, more than the {limit} that may be read")
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
    Raises: OSError; FileTooLargeError.
    """
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise FileTooLargeError(size, limit)
        pieces, left = [], size
        while left and (piece := os.read(fd, min(_PIECE_NBYTES, left))):
            pieces.append(piece)
            left -= len(piece)
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


def read_note(path: str | os.PathLike[str]) -> str:
    """The text of a file of one word, such as the one that names the last step.

    Raises: ReshardError[source-unreadable].
    """
    try:
        return read_regular(path, _NOTE_NBYTES).decode("utf-8", "replace").strip()
    except (OSError, FileTooLargeError) as error:
        raise unreadable(path, error) from None


def unreadable(path: str | os.PathLike[str], error: OSError | FileTooLargeError) -> ReshardError:
    """The error for a file that cannot be read."""
    why = str(error) if isinstance(error, FileTooLargeError) else error.strerror or str(error)
    return source_error(
        "source-unreadable",
        f"{os.fspath(path)} cannot be read",
        notes=[why],
        helps=["check its name and its permissions"],
    )
