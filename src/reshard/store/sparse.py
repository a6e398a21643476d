"""A folder whose large arrays are holes: what readers look at is there, tensors are not."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from reshard.errors import output_error
from reshard.store.open_files import OpenFiles

Range = tuple[int, int]
"""A half-open range of bytes of a file."""


class SparseFolder:
    """Writes a target without its large arrays; every file has its full size.

    Args:  path: an empty folder.  holes: byte ranges by file, which are not written.
    """

    def __init__(self, path: Path, holes: Mapping[str, Iterable[Range]]) -> None:
        self.path = path
        self._holes = {file: sorted(items) for file, items in holes.items()}
        self._open = OpenFiles(self._opened, lambda _name, _fd: None)

    def __enter__(self) -> SparseFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open_file(self, name: str, nbytes: int) -> None:
        """Create a file of its final size, all of it a hole.

        Raises: ReshardError[output-unwritable].
        """
        if name in self._open:
            return
        path = self.path / name
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with _as_output_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open.add(name, lambda: os.open(path, flags, 0o600))
            with self._open.use(name) as fd:
                os.ftruncate(fd, nbytes)

    def write(self, name: str, byte_offset: int, data: memoryview) -> None:
        """Write what of these bytes is not of a hole.

        Raises: ReshardError[output-unwritable].
        """
        for start, stop in self._kept(name, byte_offset, byte_offset + len(data)):
            with _as_output_error(self.path / name), self._open.use(name) as fd:
                _write(fd, start, data[start - byte_offset : stop - byte_offset])

    def close(self) -> None:
        """Close every file."""
        with contextlib.suppress(OSError):
            self._open.close()

    def _opened(self, name: str) -> int:
        return os.open(self.path / name, os.O_RDWR | os.O_CLOEXEC)

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
