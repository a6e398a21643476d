"""A folder whose large arrays are holes: what readers look at is there, tensors are not."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from reshard.errors import output_error

Range = tuple[int, int]
"""A half-open range of bytes of a file."""


class SparseFolder:
    """Writes a target without its large arrays; every file has its full size.

    Args:  path: an empty folder.  holes: byte ranges by file, which are not written.
    """

    def __init__(self, path: Path, holes: Mapping[str, Iterable[Range]]) -> None:
        self.path = path
        self._holes = {file: sorted(items) for file, items in holes.items()}
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
        Raises: ReshardError[output-unwritable].
        """
        known = self._open.get(name)
        if known is None:
            path = self.path / name
            with _as_output_error(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                known = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._open[name] = known
                os.ftruncate(known, nbytes)
        return known

    def write(self, name: str, byte_offset: int, data: memoryview) -> None:
        """Write what of these bytes is not of a hole.

        Raises: ReshardError[output-unwritable].
        """
        for start, stop in self._kept(name, byte_offset, byte_offset + len(data)):
            with _as_output_error(self.path / name):
                _write(self._open[name], start, data[start - byte_offset : stop - byte_offset])

    def close(self) -> None:
        """Close every file."""
        for fd in self._open.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._open.clear()

    def _kept(self, name: str, start: int, stop: int) -> Iterator[Range]:
        """What of a range lies in no hole."""
        items = self._holes.get(name, [])
        at = max(0, bisect_right(items, (start, start)) - 1)
        for low, high in items[at:]:
            if low >= stop:
                break
            if start < low:
                yield start, low
            start = max(start, high)
        if start < stop:
            yield start, stop


def _write(fd: int, byte_offset: int, data: memoryview) -> None:
    while data:
        count = os.pwrite(fd, data, byte_offset)
        data = data[count:]
        byte_offset += count


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(
            "output-unwritable",
            f"{path} cannot be written",
            notes=[error.strerror or str(error)],
            helps=["choose another folder for temporary files with `--work DIR`"],
        ) from None
