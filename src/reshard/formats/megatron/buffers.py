"""The flat buffers of the distributed optimizer: buckets of parameters, the last parameter first.

Nothing says where a parameter lies in them. So the known ways of filling buckets are tried: the
lengths must be those that are stored, and every master must round to its weight.
Source: megatron/core/distributed/param_and_grad_buffer.py, distributed_data_parallel.py,
optimizer/distrib_optimizer.py `get_parameter_state_dp_zero` (core 0.6 to 0.20).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, product
from pathlib import Path
from typing import Literal

from reshard.algebra.box import Box
from reshard.algebra.flat import flat_to_boxes
from reshard.algebra.partition import Buckets, buckets_of
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.masters import are_lower, box_of, joined_halves
from reshard.formats.megatron.names import MASTERS
from reshard.models.run_arguments import Arguments
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.run.rounding import rounds_to, samples
from reshard.run.states import MASTER
from reshard.storage.pickle_values import dtype_of_global
from reshard.storage.torch_file import TensorRef
from reshard.store.source_files import SourceFiles

COALESCED, UNPADDED = "buckets_coalesced", "numel_unpadded"
"""Entries beside the buffers, and beside the tensors of one; the tensors show the same."""

ALIGNMENT = 64
_MOST_PADDING = 1 << 17
"""Elements behind a bucket: it is padded for the number of ranks, or to 2^16 for fast transfers."""

Places = tuple[tuple[int, int], ...]
"""By parameter, its bucket and its first element there."""


@dataclass(frozen=True, slots=True)
class Part:
    """A fragment of a stored weight.

    Args:  unpadded: elements that a master must round to: those that are no padding.
    """

    weight: LocalTensor = field(compare=False)
    fragment: Fragment
    unpadded: int

    @property
    def box(self) -> Box:
        """What it is of its weight."""
        return box_of(self.weight, self.fragment)


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter of one rank: parts of stored weights, one behind the other."""

    name: str
    parts: tuple[Part, ...]

    @property
    def numel(self) -> int:
        """Its elements on this rank."""
        return sum(part.box.volume for part in self.parts)


Way = tuple[tuple[Member, tuple[int, int]], ...]
"""Every parameter of a buffer in the order of `named_parameters`, with its place."""


@dataclass(frozen=True)
class Buffer:
    """One buffer of one model-parallel rank.

    Args:  dtype: of its parameters; None where that is not said.
           lengths: of what is stored: one tensor, or one for each bucket.
           states: for each state its tensors, of one dimension; what is no part of a fragment
                   belongs to no parameter.
           form: all buckets in one tensor, without padding; a tensor for each, with padding; or one
                 for each, of which the lengths without padding are said.
    """

    dtype: DType | None
    lengths: tuple[int, ...]
    states: Mapping[str, tuple[LocalTensor, ...]]
    form: Literal["joined", "padded", "stated"]

    def ways(
        self,
        orders: Iterable[Sequence[Member]],
        args: Arguments,
        shared: Collection[str],
        files: SourceFiles,
        *,
        bucketed: bool,
    ) -> list[Way]:
        """Every way in which parameters may lie so that samples of their masters round.

        Args:  orders: the parameters in each order that `named_parameters` may have.
               shared: embeddings that two stages share; each has a bucket of its own.
               bucketed: later pipeline stages, and later chunks, have one bucket.
        """
        out: dict[Way, None] = {}
        for members in orders:
            numels = [member.numel for member in members]
            if sum(numels) > sum(self.lengths):
                continue
            separate = [index for index, member in enumerate(members) if member.name in shared]
            lower = self._has_lower(members, args, files)
            for places in dict.fromkeys(self._places(numels, args, separate, bucketed)):
                way = tuple(zip(members, places, strict=True))
                if lower or self._rounds(way, files):
                    out[way] = None
        return list(out)

    def _places(
        self, numels: Sequence[int], args: Arguments, separate: Collection[int], bucketed: bool
    ) -> Iterator[Places]:
        if self.form == "stated":
            places = _fill(numels, self.lengths)
            if places is not None:
                yield places
            return
        for size, align in product(_sizes(args, bucketed, sum(numels)), (ALIGNMENT, 1)):
            places, lengths = lay(numels, size, separate, align)
            if self.form == "joined":
                if self.lengths == (sum(lengths),):
                    yield in_one_tensor(places, lengths)
            elif len(self.lengths) == len(lengths) and all(
                used <= length < used + _MOST_PADDING
                for length, used in zip(self.lengths, lengths, strict=True)
            ):
                yield places

    def _has_lower(self, members: Sequence[Member], args: Arguments, files: SourceFiles) -> bool:
        """Whether masters are their lower halves."""
        return all(
            part.weight.dtype == DType.BF16 and part.fragment.strides is None
            for member in members
            for part in member.parts
        ) and are_lower(self.states.get(MASTER, ()), args, files)

    def _rounds(self, way: Way, files: SourceFiles) -> bool:
        masters = self.states.get(MASTER, ())
        if any(flat.dtype != DType.F32 for flat in masters):
            return False
        for member, (bucket, start) in way if masters else ():
            at = start
            for part in member.parts:
                dense, dtype = part.fragment.strides is None, part.weight.dtype
                for first, count in samples(part.unpadded) if dense else ():
                    master = _sample(masters[bucket], files, at + first, count)
                    offset = part.fragment.byte_offset + dtype.itemsize * first
                    weight = files.pread(part.fragment.file, offset, dtype.itemsize * count)
                    if master is not None and not rounds_to(master, weight, dtype, ties_up=True):
                        return False
                at += part.box.volume
        return True

    def states_of(
        self, way: Way, args: Arguments, files: SourceFiles
    ) -> Iterator[tuple[Member, Part, LocalTensor]]:
        """The states of every part, as fragments of its weight; the last parameter first."""
        lower = self._has_lower([member for member, _ in way], args, files)
        for state, flats in self.states.items():
            for member, (bucket, at) in reversed(way):
                for part in member.parts:
                    weight, flat = part.weight, flats[bucket]
                    fragments, dtype = [*_fragments(flat, at, part)], flat.dtype
                    if lower and state == MASTER:
                        halves = (joined_halves(flat, f, weight, part.fragment) for f in fragments)
                        fragments, dtype = [*chain(*halves)], DType.F32
                    if [f.box for f in fragments] == [Box.whole(weight.shape)]:
                        fragments = [replace(fragments[0], box=None)]
                    tensor = LocalTensor(weight.name, state, (), weight.shape, dtype, (*fragments,))
                    yield member, part, tensor
                    at += part.box.volume


def _fragments(flat: LocalTensor, start: int, part: Part) -> Iterator[Fragment]:
    """The elements of a part, from `start` on, as boxes of its weight."""
    box, size = part.box, flat.dtype.itemsize
    for run in flat.fragments:
        lo, hi = max(run.start, start), min(run.start + run.numel, start + box.volume)
        at = run.byte_offset + size * (lo - run.start)
        for inner in flat_to_boxes(lo - start, hi - lo, box.size) if lo < hi else ():
            corner = tuple(a + b for a, b in zip(box.lo, inner.lo, strict=True))
            yield Fragment(0, inner.volume, run.file, at, box=Box(corner, inner.size))
            at += size * inner.volume


def _sample(flat: LocalTensor, files: SourceFiles, start: int, count: int) -> bytes | None:
    """A few elements, where one fragment holds all of them."""
    size = flat.dtype.itemsize
    for run in flat.fragments:
        if run.start <= start and start + count <= run.start + run.numel:
            return files.pread(run.file, run.byte_offset + size * (start - run.start), size * count)
    return None


def lay(
    numels: Sequence[int], size: int | None, separate: Collection[int], align: int = ALIGNMENT
) -> tuple[Places, tuple[int, ...]]:
    """The place of each parameter, and the length of each bucket without padding.

    Args:  size: elements after which a bucket is closed; None for one bucket.
           separate: parameters with a bucket of their own.
           align: parameters begin at multiples of this; before core 0.6 anywhere.
    """
    buckets = buckets_of(Buckets(size, starts=align, apart=frozenset(separate)), numels)
    places = {
        tensor: (number, start)
        for number, bucket in enumerate(buckets)
        for tensor, start in zip(bucket.tensors, bucket.starts, strict=True)
    }
    return tuple(places[i] for i in range(len(numels))), tuple(b.length for b in buckets)


def in_one_tensor(places: Places, lengths: Sequence[int]) -> Places:
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
    states: dict[str, tuple[LocalTensor, ...]] = {}
    lengths, is_list = set(), set()
    for name, value in tensors.items() if isinstance(tensors, dict) else ():
        if name == UNPADDED:
            continue
        refs = value if isinstance(value, list) else [value]
        flats = []
        for ref in refs:
            if not isinstance(ref, TensorRef):
                return None
            run = Fragment(0, ref.numel, str(Path(ref.file).relative_to(folder)), ref.byte_offset)
            flats.append(LocalTensor(str(name), "", (), (ref.numel,), ref.dtype, (run,)))
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


def no_way(where: str, why: str) -> ReshardError:
    """The error for flat buffers in which the parameters lie in no known way, or in several."""
    return source_error(
        "buffer-mismatch",
        f"the positions of the parameters in {where} cannot be determined",
        notes=[why, "positions count only where every master weight rounds to its weight"],
        helps=["keep the weights with `--states weights`"],
    )
