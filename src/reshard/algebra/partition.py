"""Partitions: how data-parallel ranks share the flat elements of many tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from reshard.algebra.split import round_up, split_sizes


@dataclass(frozen=True, slots=True)
class Share:
    """A run of one tensor that one data-parallel rank holds.

    Args:  rank: the data-parallel rank.  tensor: index in the list that was partitioned.
           start, numel: the run, in elements of the flat tensor.
           offset: where the run begins in the rank's own flat array, in elements.
    """

    rank: int
    tensor: int
    start: int
    numel: int
    offset: int


@dataclass(frozen=True, slots=True)
class Partition:
    """The whole cut.

    Args:  shares: in ascending (rank, offset); empty runs are left out.
           lengths: elements of each rank's flat array, padding included.
           paddings: elements at the tail of each rank's array that belong to no tensor
                     (inner gaps are not counted).
    """

    shares: tuple[Share, ...]
    lengths: tuple[int, ...]
    paddings: tuple[int, ...]


def partition_buffer(
    numels: tuple[int, ...], ranks: int, align: int, gaps: tuple[int, ...] = ()
) -> Partition:
    """Cut one flat buffer of all tensors into equal partitions (ZeRO-1 and ZeRO-2).

    Tensors follow each other, each with its alignment gap behind it; the end is padded to a
    multiple of `align`, which must itself be a multiple of `ranks`.

    Args:  numels, gaps: per tensor, in elements.  ranks: data-parallel size.
    Source: DeepSpeed 0.19.8 deepspeed/runtime/zero/stage_1_and_2.py
            (`flatten_dense_tensors_aligned`).
    """
    gaps = gaps or (0,) * len(numels)
    used = sum(numels) + sum(gaps)
    length = round_up(used, align) // ranks
    shares: list[Share] = []
    position = 0
    for tensor, (numel, gap) in enumerate(zip(numels, gaps, strict=True)):
        at = position
        while at < position + numel:
            rank = at // length
            stop = min(position + numel, (rank + 1) * length)
            shares.append(Share(rank, tensor, at - position, stop - at, at - rank * length))
            at = stop
        position += numel + gap
    paddings = tuple(length - max(0, min(length, used - rank * length)) for rank in range(ranks))
    return Partition(tuple(shares), (length,) * ranks, paddings)


def partition_each(numels: tuple[int, ...], ranks: int) -> Partition:
    """Cut every tensor on its own into ceil(n / ranks) elements per rank (ZeRO-3).

    Each rank's array is the concatenation of its runs, every one padded to that width.

    Args:  numels: per tensor, in elements.  ranks: data-parallel size.
    Source: DeepSpeed 0.19.8 deepspeed/runtime/zero/partition_parameters.py (`_partition_param`).
    """
    shares: list[Share] = []
    widths = [-(-numel // ranks) for numel in numels]
    length = sum(widths)
    paddings = []
    for rank in range(ranks):
        offset = 0
        tail = length
        for tensor, (numel, width) in enumerate(zip(numels, widths, strict=True)):
            start = min(numel, rank * width)
            run = min(numel, start + width) - start
            if run:
                shares.append(Share(rank, tensor, start, run, offset))
                tail = length - offset - run
            offset += width
        paddings.append(tail)
    return Partition(tuple(shares), (length,) * ranks, tuple(paddings))


def partition_rows(shape: tuple[int, ...], ranks: int) -> Partition:
    """Cut a tensor along its first dimension, as `torch.chunk` cuts it (FSDP2).

    Args:  shape: of at least one dimension.  ranks: data-parallel size.
    """
    step = prod(shape[1:])
    shares: list[Share] = []
    lengths = []
    at = 0
    for rank, rows in enumerate(split_sizes(shape[0], ranks, "chunk")):
        if rows * step:
            shares.append(Share(rank, 0, at, rows * step, 0))
        lengths.append(rows * step)
        at += rows * step
    return Partition(tuple(shares), tuple(lengths), (0,) * ranks)


Kind = Literal["buffer", "each", "rows"]


def spread(kind: Kind, shapes: Sequence[tuple[int, ...]], ranks: int, align: int = 1) -> Partition:
    """How ranks share the elements of tensors: the one function that reading and writing call.

    Args:  kind: as UCL's `partition` has it; `rows` is of one tensor.  shapes: of the tensors that
           lie in one place.  align: for `buffer`, the multiple that its length is rounded up to.
    """
    if kind == "rows":
        (shape,) = shapes
        return partition_rows(shape, ranks) if shape else partition_each((1,), ranks)
    numels = tuple(prod(shape) for shape in shapes)
    return (
        partition_each(numels, ranks) if kind == "each" else partition_buffer(numels, ranks, align)
    )
