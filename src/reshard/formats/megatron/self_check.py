"""Whether fp32 masters are those of the weights beside them: the check of a guessed geometry.

A weight in bf16 or fp16 is its master rounded to nearest; samples of every parameter must be. Ties
go to even, but upwards where an optimizer keeps both halves of a master apart.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType

from reshard.dtypes import DType
from reshard.run import rounding

_SAMPLES = 16


def rounds_to(master: bytes, weight: bytes, dtype: DType) -> bool:
    """Whether fp32 elements round to those of a weight; True for types that are not checked."""
    if dtype not in (DType.F32, DType.F16, DType.BF16):
        return True
    return rounding.rounds_to(master, weight, dtype, ties_up=True)


def samples(numel: int) -> tuple[tuple[int, int], ...]:
    """A few runs (start, count) of a tensor: its beginning, its middle, its end; none if empty."""
    if not numel:
        return ()
    count = min(_SAMPLES, numel)
    return tuple(
        dict.fromkeys((start, count) for start in (0, (numel - count) // 2, numel - count))
    )


def are_remainders(data: bytes) -> bool:
    """Whether fp32 elements are whole numbers of 16 bits: lower halves of masters."""
    values = struct.unpack(f"<{len(data) // 4}f", data)
    return all(-32768 <= value <= 32767 and value == int(value) for value in values)


def spread(numel: int) -> tuple[tuple[int, int], ...]:
    """Runs (start, count) all over a tensor; none if it is empty."""
    count = min(_SAMPLES, numel)
    starts = (part * (numel - count) // _SAMPLES for part in range(_SAMPLES + 1))
    return tuple(dict.fromkeys((start, count) for start in starts)) if numel else ()


class Sampler:
    """Reads small ranges of files, each file opened once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, int] = {}

    def read(self, file: str, byte_offset: int, nbytes: int) -> bytes:
        """A range of a file."""
        fd = self._open.get(file)
        if fd is None:
            fd = self._open[file] = os.open(self._root / file, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(fd, nbytes, byte_offset)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
