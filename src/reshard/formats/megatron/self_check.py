"""Whether fp32 masters are those of the weights beside them: the check of a guessed geometry.

A weight in bf16 or fp16 is its master rounded to nearest; samples of every parameter must be. Ties
go to even, but upwards where an optimizer keeps both halves of a master apart.
"""

from __future__ import annotations

import os
import struct
from math import inf
from pathlib import Path

from reshard.dtypes import DType

_SAMPLES = 16


def rounds_to(master: bytes, weight: bytes, dtype: DType) -> bool:
    """Whether fp32 elements round to those of a weight; True for types that are not checked."""
    if dtype == DType.F32:
        return master == weight
    count = len(weight) // 2
    if dtype == DType.F16:
        values = struct.unpack(f"<{count}f", master[: 4 * count])
        return weight == b"".join(map(_to_fp16, values))
    if dtype != DType.BF16:
        return True
    bits = struct.unpack(f"<{count}I", master[: 4 * count])
    weights = struct.unpack(f"<{count}H", weight)
    return all(
        value == _to_bf16(master) or (master & 0xFFFF == 0x8000 and value == (master >> 16) + 1)
        for value, master in zip(weights, bits, strict=True)
    )


def _to_fp16(value: float) -> bytes:
    try:
        return struct.pack("<e", value)
    except OverflowError:  # too large: infinite, as torch rounds it
        return struct.pack("<e", inf if value > 0 else -inf)


def _to_bf16(bits: int) -> int:
    if bits & 0x7FFFFFFF > 0x7F800000:
        return (bits >> 16) | 0x40
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


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

    def close(self) -> None:
        """Close every file."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
