"""What running a plan takes of memory."""

from __future__ import annotations

from reshard.engine.gather import BLOCK_NUMEL, SCRATCH_NBYTES
from reshard.engine.units import TRANSPOSED_WINDOWS
from reshard.plan.plan import Array, Plan

BASE_NBYTES = 64 << 20
"""The interpreter with numpy and everything of ours, before any plan."""

COPY_NBYTES = 1500
"""One copy of a plan with its origin and everything in them."""


def peak_memory(plan: Plan, threads: int, buffer_bytes: int) -> int:
    """An upper estimate of resident bytes while a plan runs; it does not grow with tensor sizes.

    Args:  threads, buffer_bytes: as for `execute`.
    """
    copies = sum(len(item.array.copies) for item in plan.placed)
    return BASE_NBYTES + copies * COPY_NBYTES + buffer_memory(plan, threads, buffer_bytes)


def buffer_memory(plan: Plan, threads: int, buffer_bytes: int) -> int:
    """What of it is buffers.

    Args:  as for `peak_memory`.
    """
    window = max((_window_nbytes(item.array, buffer_bytes) for item in plan.placed), default=0)
    return threads * (window + 2 * SCRATCH_NBYTES)


def _window_nbytes(array: Array, buffer_bytes: int) -> int:
    """Bytes that one thread holds while it makes a window of an array."""
    window = buffer_bytes
    means = any(copy.mode == "mean" for copy in array.copies)
    turned = any(
        len(copy.move.shape) > 1 and copy.move.src_strides[-1] > min(copy.move.src_strides)
        for copy in array.copies
    )
    if turned:
        window *= TRANSPOSED_WINDOWS
    window = min(window, max(array.spec.nbytes, 1))
    if means:  # sums in float64, the first place, another, and what is rounded
        window += BLOCK_NUMEL * 8 * 8
    return window
