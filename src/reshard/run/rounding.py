"""Whether a weight is the rounding of its master weight, on a few elements and without numpy."""

from __future__ import annotations

import struct

from reshard.dtypes import DType

PROBED = 64
"""Elements that are looked at."""
SAMPLE = 16
"""Elements of one sample of several."""


def samples(numel: int, places: int = 3) -> tuple[tuple[int, int], ...]:
    """Short runs (start, count) at the beginning of a tensor, at its end, and between; none if it
    is empty.
    """
    count = min(SAMPLE, numel)
    starts = (part * (numel - count) // (places - 1) for part in range(places))
    return tuple(dict.fromkeys((start, count) for start in starts)) if numel else ()


def rounds_to(master: bytes, weight: bytes, dtype: DType, *, ties_up: bool = False) -> bool:
    """Whether fp32 numbers round to these weights, to nearest and ties to even.

    True for weights of other types, which are not checked.

    Args:  master: fp32, little-endian.  weight: as many elements of `dtype`.
           ties_up: a tie of bf16 may go up, as optimizers round that keep the halves apart.
    """
    if dtype not in (DType.F32, DType.BF16, DType.F16):
        return True
    if dtype == DType.F32:
        return master == weight
    count = len(master) // 4
    words = struct.unpack(f"<{count}I", master)
    halves = struct.unpack(f"<{count}H", weight)
    if dtype == DType.BF16:
        return all(
            _bfloat16(word) == half or (ties_up and word & 0xFFFF == 0x8000 and half == _up(word))
            for word, half in zip(words, halves, strict=True)
        )
    return all(_float16(word) == half for word, half in zip(words, halves, strict=True))


def _up(word: int) -> int:
    return (word >> 16) + 1


def _bfloat16(word: int) -> int:
    if word & 0x7FFFFFFF > 0x7F800000:
        return (word >> 16) | 0x40  # not a number stays one
    return (word + 0x7FFF + (word >> 16 & 1)) >> 16


def _float16(word: int) -> int:
    (value,) = struct.unpack("<f", struct.pack("<I", word))
    try:
        packed = struct.pack("<e", value)
    except OverflowError:
        packed = struct.pack("<e", float("inf") if value > 0 else float("-inf"))
    return int.from_bytes(packed, "little")
