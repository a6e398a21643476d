"""The flat buffers of the distributed optimizer: buckets of parameters, the last parameter first.

Nothing says where a parameter lies in them. So the known ways of filling buckets are tried: the
lengths must be those that are stored, and every master must round to its weight.
Source: megatron/core/distributed/param_and_grad_buffer.py, distributed_data_parallel.py,
optimizer/distrib_optimizer.py `get_parameter_state_dp_zero` (core 0.6 to 0.20).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path
from typing import Literal

from reshard.algebra.box import Box
from reshard.algebra.flat import flat_to_boxes
from reshard.algebra.partition import Buckets, buckets_of
from reshard.dtypes import DType
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.self_check import Sampler, are_remainders, rounds_to, samples, spread
from reshard.plan.catalog import Fragment, Upper
from reshard.run.states import MASTER
from reshard.storage.pickle_values import dtype_of_global
from reshard.storage.torch_file import TensorRef

MASTERS = ("param", "fp32_param")
"""What masters are called beside the optimizer's own states."""

COALESCED, UNPADDED = "buckets_coalesced", "numel_unpadded"
"""Entries beside the buffers, and beside the tensors of one; the tensors show the same."""

ALIGNMENT = 64
_MOST_PADDING = 1 << 17
"""Elements behind a bucket: it is padded for the number of ranks, or to 2^16 for fast transfers."""

Places = tuple[tuple[int, int], ...]
"""By parameter, its bucket and its first element there."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a flat tensor as it lies in a file."""

    start: int
    numel: int
    file: str
    byte_offset: int


@dataclass(frozen=True, slots=True)
class Part:
    """A box of a stored weight.

    Args:  byte_offset: of its first element; None where it is not dense.
           checked: elements that a master must round to: those that are no padding.
    """

    name: str
    box: Box
    dtype: DType
    file: str
    byte_offset: int | None
    checked: int


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter of one rank: boxes of stored weights, one behind the other."""

    name: str
    parts: tuple[Part, ...]

    @property
    def numel(self) -> int:
        """Its elements on this rank."""
        return sum(part.box.volume for part in self.parts)


@dataclass(frozen=True, slots=True)
class Flat:
    """One state's elements of a bucket.

    Args:  runs: in order; between them may be gaps that belong to no parameter.
    """

    dtype: DType
    runs: tuple[Run, ...]

    def fragments(self, start: int, part: Part, *, is_lower: bool) -> Iterator[Fragment]:
        """The elements of a part as boxes.

        Args:  start: where they begin.
               is_lower: they are the lower halves of masters, the upper ones are the weight.
        """
        box, size = part.box, self.dtype.itemsize
        for run in self.runs:
            lo, hi = max(run.start, start), min(run.start + run.numel, start + box.volume)
            at = lo
            for inner in flat_to_boxes(lo - start, hi - lo, box.size) if lo < hi else ():
                corner = tuple(a + b for a, b in zip(box.lo, inner.lo, strict=True))
                upper = None
                if is_lower and part.byte_offset is not None:
                    weight = part.byte_offset + DType.BF16.itemsize * (at - start)
                    upper = Upper(part.file, weight, self.dtype)
                yield Fragment(
                    0,
                    inner.volume,
                    run.file,
                    run.byte_offset + size * (at - run.start),
                    box=Box(corner, inner.size),
                    upper=upper,
                )
                at += inner.volume

    def sample(self, sampler: Sampler, start: int, count: int) -> bytes | None:
        """A few elements, where one run holds all of them."""
        for run in self.runs:
            if run.start <= start and start + count <= run.start + run.numel:
                size = self.dtype.itemsize
                at = run.byte_offset + size * (start - run.start)
                return sampler.read(run.file, at, size * count)
        return None


@dataclass(frozen=True)
class Buffer:
    """One buffer of one model-parallel rank.

    Args:  dtype: of its parameters; None where that is not said.
           lengths: of what is stored: one tensor, or one for each bucket.
           states: for each state its tensors.
           form: all buckets in one tensor, without padding; a tensor for each, with padding; or one
                 for each, of which the lengths without padding are said.
    """

    dtype: DType | None
    lengths: tuple[int, ...]
    states: Mapping[str, tuple[Flat, ...]]
    form: Literal["joined", "padded", "stated"]

    def places(
        self,
        members: Sequence[Member],
        args: Arguments,
        shared: Collection[str],
        sampler: Sampler,
        *,
        bucketed: bool,
    ) -> list[Places]:
        """Every way in which parameters may lie so that samples of their masters round.

        Args:  members: in the order of `named_parameters`.
               shared: embeddings that two stages share; each has a bucket of its own.
               bucketed: later pipeline stages, and later chunks, have one bucket.
        """
        ways = dict.fromkeys(self._ways(members, args, shared, bucketed))
        lower = self.has_lower(members, args, sampler)
        return [way for way in ways if lower or self._rounds(members, way, sampler)]

    def _ways(
        self, members: Sequence[Member], args: Arguments, shared: Collection[str], bucketed: bool
    ) -> Iterator[Places]:
        numels = [member.numel for member in members]
        if self.form == "stated":
            way = _fill(numels, self.lengths)
            if way is not None:
                yield way
            return
        apart = [index for index, member in enumerate(members) if member.name in shared]
        for size, align in product(_sizes(args, bucketed, sum(numels)), (ALIGNMENT, 1)):
            places, lengths = lay(numels, size, apart, align)
            if self.form == "joined":
                if self.lengths == (sum(lengths),):
                    yield joined(places, lengths)
            elif len(self.lengths) == len(lengths) and all(
                used <= length < used + _MOST_PADDING
                for length, used in zip(self.lengths, lengths, strict=True)
            ):
                yield places

    def has_lower(self, members: Sequence[Member], args: Arguments, sampler: Sampler) -> bool:
        """Whether masters are their lower halves: as int16, or as these numbers in fp32."""
        masters = self.states.get(MASTER, ())
        parts = [part for member in members for part in member.parts]
        if not masters or any(p.dtype != DType.BF16 or p.byte_offset is None for p in parts):
            return False
        kinds = {flat.dtype for flat in masters}
        return kinds == {DType.I16} or (
            args.is_precise
            and kinds == {DType.F32}
            and all(
                are_remainders(sampler.read(run.file, run.byte_offset + 4 * at, 4 * count))
                for flat in masters
                for run in flat.runs
                for at, count in spread(run.numel)
            )
        )

    def _rounds(self, members: Sequence[Member], places: Places, sampler: Sampler) -> bool:
        masters = self.states.get(MASTER)
        if masters is None:
            return True
        if any(flat.dtype != DType.F32 for flat in masters):
            return False
        for member, (bucket, start) in zip(members, places, strict=True):
            at = start
            for part in member.parts:
                size = part.dtype.itemsize
                for first, count in samples(part.checked) if part.byte_offset is not None else ():
                    master = masters[bucket].sample(sampler, at + first, count)
                    offset = (part.byte_offset or 0) + size * first
                    weight = sampler.read(part.file, offset, size * count)
                    if master is not None and not rounds_to(master, weight, part.dtype):
                        return False
                at += part.box.volume
        return True


def lay(
    numels: Sequence[int], size: int | None, apart: Collection[int], align: int = ALIGNMENT
) -> tuple[Places, tuple[int, ...]]:
    """The place of each parameter, and the length of each bucket without padding.

    Args:  size: elements after which a bucket is closed; None for one bucket.
           apart: parameters with a bucket of their own.
           align: parameters begin at multiples of this; before core 0.6 anywhere.
    """
    buckets = buckets_of(Buckets(size, starts=align, apart=frozenset(apart)), numels)
    places = {
        tensor: (number, start)
        for number, bucket in enumerate(buckets)
        for tensor, start in zip(bucket.tensors, bucket.starts, strict=True)
    }
    return tuple(places[i] for i in range(len(numels))), tuple(b.length for b in buckets)


def joined(places: Places, lengths: Sequence[int]) -> Places:
    """The same places in all buckets one behind the other."""
    before = [0, *accumulate(lengths)]
    return tuple((0, before[bucket] + start) for bucket, start in places)


def stored_buffers(root: object, folder: Path) -> list[tuple[int, Buffer | None]]:
    """The buffers of a tree `{index: {(param dtype, grad dtype): {state: flat tensor, ...}}}`, each
    with its index; None for what is none.

    Before 2024 there is a list of tensors for each state, one for each bucket.
    """
    out: list[tuple[int, Buffer | None]] = []
    for index, by_kind in root.items() if isinstance(root, dict) else ():
        if isinstance(index, int) and isinstance(by_kind, dict):
            for kinds, tensors in by_kind.items():
                out.append((index, _buffer(kinds, tensors, folder)))
    return out


def _buffer(kinds: object, tensors: object, folder: Path) -> Buffer | None:
    states: dict[str, tuple[Flat, ...]] = {}
    lengths, is_list = set(), set()
    for name, value in tensors.items() if isinstance(tensors, dict) else ():
        if name == UNPADDED:
            continue
        refs = value if isinstance(value, list) else [value]
        flats = []
        for ref in refs:
            if not isinstance(ref, TensorRef):
                return None
            file = str(Path(ref.file).relative_to(folder))
            flats.append(Flat(ref.dtype, (Run(0, ref.numel, file, ref.byte_offset),)))
        states[MASTER if name in MASTERS else str(name)] = tuple(flats)
        lengths.add(tuple(ref.numel for ref in refs))
        is_list.add(isinstance(value, list))
    if len(lengths) != 1 or len(is_list) != 1:
        return None
    dtype = dtype_of_global(kinds[0]) if isinstance(kinds, tuple) and kinds else None
    return Buffer(dtype, lengths.pop(), states, "padded" if is_list.pop() else "joined")


def _fill(numels: Sequence[int], lengths: Sequence[int]) -> Places | None:
    """Place parameters in buckets of known lengths; None when they do not add up."""
    out: list[tuple[int, int]] = []
    bucket, at = 0, 0
    for numel in reversed(numels):
        at = -(-at // ALIGNMENT) * ALIGNMENT
        if bucket < len(lengths) and at + numel > lengths[bucket]:
            bucket, at = bucket + 1, 0
        if bucket >= len(lengths) or at + numel > lengths[bucket]:
            return None
        out.append((bucket, at))
        at += numel
    return tuple(reversed(out)) if (bucket, at) == (len(lengths) - 1, lengths[-1]) else None


def _sizes(args: Arguments, bucketed: bool, numel: int) -> list[int | None]:
    """Bucket sizes to try, each once: what the run said, none, and the default."""
    if not bucketed:
        return [None]
    size, count = args.integer("ddp_bucket_size"), args.integer("ddp_num_buckets")
    sizes: list[int | None] = [size] if size else []
    sizes += [numel // count] if count else []
    ranks = args.size("dp") * (args.integer("context_parallel_size") or 1)
    return list(dict.fromkeys([*sizes, None, default_size(ranks)]))


def default_size(ranks: int) -> int:
    """Elements of a bucket of a run that overlaps the reduction of its gradients.

    Args:  ranks: that share a buffer; those of context parallelism do, too.
    """
    return max(40_000_000, 1_000_000 * ranks)
