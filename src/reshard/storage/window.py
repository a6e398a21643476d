"""An open file of which many small ranges are read that lie close to each other."""

from __future__ import annotations

import os

NBYTES = 1 << 12
"""What is read at least: the headers of a small zip file, or its directory."""

_KEPT = 2


class Window:
    """Reads ranges of a file; what was read last is kept, at the front and at the end of a blob.

    Args:  fd: of a file that stays open and does not change.
    """

    __slots__ = ("_fd", "_held")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held: list[tuple[int, bytes]] = []

    def pread(self, nbytes: int, byte_offset: int) -> bytes:
        """Bytes of the file; fewer where it ends before."""
        stop = byte_offset + nbytes
        for start, data in self._held:
            if start <= byte_offset and stop <= start + len(data):
                return data[byte_offset - start : stop - start]
        if nbytes > NBYTES:
            return os.pread(self._fd, nbytes, byte_offset)
        data = os.pread(self._fd, NBYTES, byte_offset)
        self._held = [(byte_offset, data), *self._held[: _KEPT - 1]]
        return data[:nbytes]
