"""A folder whose large arrays are holes: what readers look at is there, tensors are not."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

Range = tuple[int, int]
"""A half-open range of bytes of a file."""


class SparseFolder:
    """Writes a target without its large arrays; every file has its full size.

    Args:  path: an empty folder.  holes: byte ranges by file, which are not written.
    """

    def __init__(self, path: Path, holes: Mapping[str, Iterable[Range]]) -> None:
        self.path = path
        self._inside = {file: sorted(items) for file, items in holes.items()}
        self._open: dict[str, int] = {}

    def __enter__(self) -> SparseFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open_file(self, name: str, nbytes: int) -> int:
        """Create a file of its final size, all of it a hole.

        Returns: a descriptor that is closed with the folder.
        Raises: OSError.
        """
        known = self._open.get(name)
        if known is None:
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            known = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._open[name] = known
            os.ftruncate(known, nbytes)
        return known

    def write(self, name: str, byte_offset: int, data: memoryview) -> None:
        """Write bytes, unless they are of a hole.

        Raises: OSError.
        """
        if self._is_hole(name, byte_offset):
            return
        fd = self._open[name]
        while data:
            count = os.pwrite(fd, data, byte_offset)
            data = data[count:]
            byte_offset += count

    def close(self) -> None:
        """Close every file."""
        for fd in self._open.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._open.clear()

    def _is_hole(self, name: str, byte_offset: int) -> bool:
        items = self._inside.get(name, [])
        at = bisect_right(items, (byte_offset, 1 << 63)) - 1
        return at >= 0 and items[at][0] <= byte_offset < items[at][1]
