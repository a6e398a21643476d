"""What running a plan takes of memory."""

from __future__ import annotations

from reshard.engine.gather import BLOCK_NUMEL, SCRATCH_NBYTES
from reshard.engine.units import TRANSPOSED_WINDOWS
from reshard.plan.plan import Array, Plan, Region

BASE_NBYTES = 64 << 20
"""The interpreter with numpy and everything of ours, before any plan."""

COPY_NBYTES = 1500
"""One box of a plan, or one copy of an array that is being made, and everything in them."""

FRAGMENT_NBYTES = 500
"""One fragment of a source, where a local tensor lies in several."""


def peak_memory(plan: Plan, threads: int, buffer_bytes: int) -> int:
    """An upper estimate of resident bytes while a plan runs; it does not grow with tensor sizes.

    Args:  threads, buffer_bytes: as for `execute`.
    """
    boxes = sum(len(item.array.boxes) for item in plan.placed)
    resident = boxes * COPY_NBYTES + _fragments_nbytes(plan, threads)
    return BASE_NBYTES + resident + buffer_memory(plan, threads, buffer_bytes)


def _fragments_nbytes(plan: Plan, threads: int) -> int:
    """Memory of the fragments that local tensors lie in, and of the copies of arrays at work."""
    lengths: dict[int, int] = {}
    most = 0
    for item in plan.placed:
        copies = 0
        for box in item.array.boxes:
            if isinstance(box, Region):
                for runs in box.runs:
                    if len(runs.fragments) > 1:
                        lengths[id(runs)] = len(runs.fragments)
                        copies += len(runs.fragments)
        most = max(most, copies)
    return sum(lengths.values()) * FRAGMENT_NBYTES + threads * most * COPY_NBYTES


def buffer_memory(plan: Plan, threads: int, buffer_bytes: int) -> int:
    """What of it is buffers.

    Args:  as for `peak_memory`.
    """
    window = max((_window_nbytes(item.array, buffer_bytes) for item in plan.placed), default=0)
    return threads * (window + 2 * SCRATCH_NBYTES)


def _window_nbytes(array: Array, buffer_bytes: int) -> int:
    """Bytes that one thread holds while it makes a window of an array."""
    window = buffer_bytes
    means = any(box.mode == "mean" for box in array.boxes)
    turned = any(
        len(box.move.shape) > 1 and box.move.src_strides[-1] > min(box.move.src_strides)
        for box in array.boxes
    )
    if turned:
        window *= TRANSPOSED_WINDOWS
    window = min(window, max(array.spec.nbytes, 1))
    if means:  # sums in float64, the first place, another, and what is rounded
        window += BLOCK_NUMEL * 8 * 8
    return window
