"""Partitions: how data-parallel ranks share the flat elements of many tensors.

A rule says it, and `spread` obeys it: the one function that reading and writing call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import lcm, prod
from typing import Literal

from reshard.algebra.split import round_up, split_sizes

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Buffer:
    """One flat buffer of all tensors, cut into equal shares (ZeRO-1 and ZeRO-2, flat optimizers).

    Tensors follow each other, each with its gap behind it; the end is padded.

    Args:  align: the buffer's length is a multiple of this, and of the number of ranks.
           gaps: elements left free behind each tensor; () for what `starts` asks for.
           starts: tensors begin at multiples of this.
           is_round_robin: whether they lie in the order in which ranks take them in turn.
    Source: DeepSpeed 0.19.8 deepspeed/runtime/zero/stage_1_and_2.py
            (`flatten_dense_tensors_aligned`).
    """

    align: int = 1
    gaps: tuple[int, ...] = ()
    starts: int = 1
    is_round_robin: bool = False


@dataclass(frozen=True, slots=True)
class Each:
    """Every tensor by itself, in runs of its elements; a rank's array has one behind the other.

    Args:  split: `padded`, every run takes as much room as the first, ceil(n / ranks) (ZeRO-3);
           `balanced`, the first n % ranks ranks have one more, and nothing is padded (nanotron).
    Source: DeepSpeed 0.19.8 deepspeed/runtime/zero/partition_parameters.py (`_partition_param`);
            nanotron/optim/zero.py (`_partition_parameters`, 2411b02).
    """

    split: Literal["padded", "balanced"] = "padded"


@dataclass(frozen=True, slots=True)
class Rows:
    """Every tensor by itself, between the rows of its first dimension, as `torch.chunk` cuts it.

    A tensor without dimensions is its first rank's (FSDP2).
    """


@dataclass(frozen=True, slots=True)
class Buckets:
    """Buffers of the tensors from the last to the first, closed as soon as they are full enough.

    Every buffer is cut into equal shares; a rank's array has its shares one behind the other.

    Args:  size: elements from which on a buffer is full; None for one buffer.
           align: the length of each buffer is a multiple of this, and of the number of ranks.
           starts: tensors begin at multiples of this.
           apart: indices of tensors that have a buffer of their own.
    Source: Megatron-core 0.16.1 core/distributed/param_and_grad_buffer.py (`_ParamAndGradBuffer`).
    """

    size: int | None = None
    align: int = 1
    starts: int = 1
    apart: frozenset[int] = frozenset()


Rule = Buffer | Each | Rows | Buckets


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


@dataclass(frozen=True)
class Partition:
    """The whole cut.

    Args:  shares: in ascending (rank, offset); empty runs are left out.
           lengths: elements of each rank's flat array, padding included.
    """

    shares: tuple[Share, ...]
    lengths: tuple[int, ...]

    @cached_property
    def by_rank(self) -> list[list[Share]]:
        """What every rank holds, in the order of its array."""
        out: list[list[Share]] = [[] for _ in self.lengths]
        for share in self.shares:
            out[share.rank].append(share)
        return out

    def by_tensor(self, count: int) -> list[list[Share]]:
        """The shares of every tensor, by where they start in it."""
        out: list[list[Share]] = [[] for _ in range(count)]
        for share in sorted(self.shares, key=lambda share: share.start):
            out[share.tensor].append(share)
        return out

    def paddings(self, used: int) -> tuple[int, ...]:
        """Elements at the end of each rank's share of a buffer of which so many are used."""
        return tuple(
            length - max(0, min(length, used - rank * length))
            for rank, length in enumerate(self.lengths)
        )


def spread(rule: Rule, shapes: Sequence[Shape], ranks: int) -> Partition:
    """How ranks share the elements of tensors.

    Args:  shapes: of the tensors that lie in one place, in their order there.
    """
    if isinstance(rule, Buffer):
        return _buffer(rule, [prod(shape) for shape in shapes], ranks)
    if isinstance(rule, Buckets):
        return _buckets(rule, [prod(shape) for shape in shapes], ranks)
    runs = [_runs(rule, shape, ranks) for shape in shapes]
    is_padded = isinstance(rule, Each) and rule.split == "padded"
    rooms = [[max(own)] * ranks if is_padded else own for own in runs]
    starts = [0] * len(runs)
    shares: list[Share] = []
    lengths: list[int] = []
    for rank in range(ranks):
        offset = 0
        for tensor, own in enumerate(runs):
            if own[rank]:
                shares.append(Share(rank, tensor, starts[tensor], own[rank], offset))
            starts[tensor] += own[rank]
            offset += rooms[tensor][rank]
        lengths.append(offset)
    return Partition(tuple(shares), tuple(lengths))


def _runs(rule: Each | Rows, shape: Shape, ranks: int) -> list[int]:
    """The elements of one tensor that each rank has."""
    if isinstance(rule, Each):
        how: Literal["chunk", "balanced"] = "chunk" if rule.split == "padded" else "balanced"
        return list(split_sizes(prod(shape), ranks, how))
    rows = split_sizes(shape[0] if shape else 1, ranks, "chunk")
    return [count * prod(shape[1:]) for count in rows]


def _buffer(rule: Buffer, numels: Sequence[int], ranks: int) -> Partition:
    order = round_robin(len(numels), ranks) if rule.is_round_robin else range(len(numels))
    gaps = rule.gaps or aligned_gaps([numels[tensor] for tensor in order], rule.starts)
    length = round_up(sum(numels) + sum(gaps), lcm(rule.align, ranks)) // ranks
    shares: list[Share] = []
    position = 0
    for tensor, gap in zip(order, gaps, strict=True):
        at, end = position, position + numels[tensor]
        while at < end:
            rank = at // length
            stop = min(end, (rank + 1) * length)
            shares.append(Share(rank, tensor, at - position, stop - at, at - rank * length))
            at = stop
        position = end + gap
    return Partition(tuple(shares), (length,) * ranks)


def _buckets(rule: Buckets, numels: Sequence[int], ranks: int) -> Partition:
    shares: list[Share] = []
    base = 0
    for bucket in buckets_of(rule, numels):
        own = [numels[tensor] for tensor in bucket.tensors]
        ends = (start + numel for start, numel in zip(bucket.starts, own, strict=True))
        nexts = (*bucket.starts[1:], bucket.length)
        gaps = tuple(after - end for after, end in zip(nexts, ends, strict=True))
        cut = _buffer(Buffer(rule.align, gaps), own, ranks)
        shares += [
            Share(s.rank, bucket.tensors[s.tensor], s.start, s.numel, base + s.offset)
            for s in cut.shares
        ]
        base += cut.lengths[0]
    ordered = sorted(shares, key=lambda share: (share.rank, share.offset))
    return Partition(tuple(ordered), (base,) * ranks)


@dataclass(frozen=True, slots=True)
class Bucket:
    """What lies in one bucket.

    Args:  tensors: indices, in the order of its buffer.  starts: where each begins there.
           length: without padding; up to where a tensor that gets a buffer of its own would begin.
    """

    tensors: tuple[int, ...]
    starts: tuple[int, ...]
    length: int


def buckets_of(rule: Buckets, numels: Sequence[int]) -> list[Bucket]:
    """The tensors of every bucket."""
    out: list[Bucket] = []
    tensors: list[int] = []
    starts: list[int] = []
    at = 0

    def close() -> None:
        nonlocal at
        out.append(Bucket(tuple(tensors), tuple(starts), at))
        tensors.clear()
        starts.clear()
        at = 0

    for tensor in reversed(range(len(numels))):
        at = round_up(at, rule.starts)
        if tensors and tensor in rule.apart:
            close()
        tensors.append(tensor)
        starts.append(at)
        at += numels[tensor]
        if tensor in rule.apart or (rule.size is not None and at >= rule.size):
            close()
    if tensors:
        close()
    return out


def aligned_gaps(numels: Sequence[int], multiple: int) -> tuple[int, ...]:
    """What is left free behind each tensor so that the next one begins at a multiple.

    Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py, `parameter_alignment`.
    """
    out, end = [], 0
    for position, numel in enumerate(numels):
        end += numel
        out.append(0 if position == len(numels) - 1 else -end % multiple)
        end += out[-1]
    return tuple(out)


def round_robin(count: int, ranks: int) -> tuple[int, ...]:
    """The order of tensors that ranks take in turn: the first, and every `ranks`th after it, ...

    Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py `_round_robin_reorder`.
    """
    return tuple(index for first in range(ranks) for index in range(first, count, ranks))


def sub_groups(numels: Sequence[int], ranks: int, size: int) -> list[range]:
    """Neighbouring tensors, closed as soon as a rank's shares of them have `size` elements.

    Source: DeepSpeed 0.19.8 runtime/zero/stage3.py `_create_fp16_sub_groups`.
    """
    widths = [-(-numel // ranks) for numel in numels]
    if size >= sum(widths):
        return [range(len(numels))]
    out: list[range] = []
    first = filled = 0
    for position, width in enumerate(widths):
        filled += width
        if filled >= size or position == len(widths) - 1:
            out.append(range(first, position + 1))
            first, filled = position + 1, 0
    return out
