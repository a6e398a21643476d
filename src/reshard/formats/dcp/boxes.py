"""Which box of a tensor each rank has, by the rules of DTensor.

Tensor-parallel ranks cut one dimension, and FSDP the first dimension of what they have, each as
`torch.chunk` does: pieces of the rounded-up size, the last ones smaller or empty.
Source: torch/distributed/tensor/placement_types.py `Shard.local_shard_size_and_offset` (2.13).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reshard.algebra.box import Box


@dataclass(frozen=True, slots=True)
class Grid:
    """The ranks that will hold the files.

    Args:  dp: ranks of FSDP.  tp: tensor-parallel ranks, which count fastest.
    """

    dp: int = 1
    tp: int = 1

    @property
    def size(self) -> int:
        """Ranks."""
        return self.dp * self.tp


@dataclass(frozen=True, slots=True)
class Part:
    """A box and the rank that writes it; None where any may."""

    rank: int | None
    box: Box


def chunk(length: int, count: int) -> list[tuple[int, int]]:
    """Start and size of every piece of a dimension."""
    step = -(-length // count) if length else 0
    starts = [min(index * step, length) for index in range(count)]
    return [(lo, min(lo + step, length) - lo) for lo in starts]


def parts(shape: tuple[int, ...], grid: Grid, cut: int | None, *, whole: bool) -> list[Part]:
    """The boxes of a tensor, without those that are empty.

    Args:  cut: the dimension that tensor-parallel ranks cut; None if each has all of it.
           whole: FSDP leaves it as it is (buffers).
    """
    every = Part(None, Box.whole(shape))
    if not shape or (whole and cut is None) or not every.box.volume:
        return [every]
    out = [part for part in _grid(shape, grid, cut, whole) if part.box.volume]
    return [Part(None, out[0].box)] if len(out) == 1 else out


def _grid(shape: tuple[int, ...], grid: Grid, cut: int | None, whole: bool) -> Iterator[Part]:
    columns = [(0, 0)] if cut is None else chunk(shape[cut], grid.tp)
    for tp_rank, (start, size) in enumerate(columns):
        lo, held = [0] * len(shape), list(shape)
        if cut is not None:
            lo[cut], held[cut] = start, size
        rows = [(0, held[0])] if whole else chunk(held[0], grid.dp)
        for dp_rank, (first, count) in enumerate(rows):
            box = Box((lo[0] + first, *lo[1:]), (count, *held[1:]))
            yield Part(dp_rank * grid.tp + tp_rank, box)
