"""Whether a weight is the rounding of its master weight, on a few elements and without numpy."""

from __future__ import annotations

import struct

from reshard.dtypes import DType

PROBED = 64
"""Elements that are looked at."""


def rounds_to(master: bytes, weight: bytes, dtype: DType, *, ties_up: bool = False) -> bool:
    """Whether fp32 numbers round to these weights, to nearest and ties to even.

    Args:  master: fp32, little-endian.  weight: as many elements of `dtype` (F32, BF16, or F16).
           ties_up: a tie of bf16 may go up, as optimizers round that keep the halves apart.
    """
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
