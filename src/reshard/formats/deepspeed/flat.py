"""Where a parameter's elements lie in the flat buffers of ZeRO. Integers only.

Source: DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py `flatten_dense_tensors_aligned` and
runtime/zero/partition_parameters.py `partition_numel`; verified on checkpoints of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive elements of one parameter in one rank's partition.

    Args:  start: index of the first in the parameter.  partition: which one.
           offset: index of the first in that partition.  numel: elements.
    """

    start: int
    partition: int
    offset: int
    numel: int


def buffer_offsets(numels: Sequence[int], gaps: Sequence[int] | None) -> tuple[list[int], int]:
    """Where each parameter starts in a buffer of stages 1 and 2, and where the last one ends."""
    offsets = []
    at = end = 0
    for index, numel in enumerate(numels):
        offsets.append(at)
        end = at + numel
        at = end + (gaps[index] if gaps is not None else 0)
    return offsets, end


def buffer_runs(offset: int, numel: int, partition_numel: int) -> Iterator[Run]:
    """The runs of a parameter in a buffer that is cut into equal partitions.

    Args:  offset: of its first element in the buffer.
    """
    at = offset
    while at < offset + numel:
        partition = at // partition_numel
        stop = min(offset + numel, (partition + 1) * partition_numel)
        yield Run(at - offset, partition, at - partition * partition_numel, stop - at)
        at = stop


def each_numel(numel: int, count: int) -> int:
    """Elements of one parameter that every rank holds at stage 3, padding included."""
    return -(-numel // count)


def each_runs(offset: int, numel: int, count: int) -> Iterator[Run]:
    """The runs of a parameter that is cut by itself into equal partitions (stage 3).

    Args:  offset: of its piece in every rank's flat group.
    """
    own = each_numel(numel, count)
    for partition in range(count):
        start = partition * own
        if start >= numel:
            return
        yield Run(start, partition, offset, min(own, numel - start))
