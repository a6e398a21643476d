"""The flat buffers of a distributed checkpoint: their buckets, and where the elements lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from reshard.algebra.box import Box
from reshard.algebra.flat import flat_to_boxes
from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.buffers import lay_buffer
from reshard.formats.megatron.dist_names import MASTERS, FlatKey
from reshard.formats.megatron.distrib_optim import bucket_sizes, data_parallel
from reshard.formats.megatron.flat_members import Member
from reshard.formats.megatron.self_check import Sampler
from reshard.plan.catalog import Fragment
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import StoredTensor
from reshard.storage.pickle_values import dtype_of_global, dtype_of_name
from reshard.storage.torch_file import TensorRef

_ALIGNMENT = 64
_OBJECT = re.compile(
    r"(?:chained_(\d+)\.)?optimizer\.distributed\.dp_group_idx_(\d+)\."
    r"(param_state|per_bucket_numel_unpadded)/"
)

Places = list[tuple[Member, int, int]]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a flat bucket as it lies in a file."""

    start: int
    numel: int
    file: str
    byte_offset: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """One state's elements of a bucket.

    Args:  runs: in order.  Between them may be gaps that belong to no parameter.
    """

    dtype: DType
    runs: tuple[Run, ...]

    def fragments(self, start: int, box: Box) -> Iterator[Fragment]:
        """Elements `[start, start + volume)` as boxes within a box."""
        stop = start + box.volume
        size = self.dtype.itemsize
        for run in self.runs:
            lo, hi = max(run.start, start), min(run.start + run.numel, stop)
            if lo >= hi:
                continue
            at = run.byte_offset + size * (lo - run.start)
            for inner in flat_to_boxes(lo - start, hi - lo, box.size):
                corner = tuple(a + b for a, b in zip(box.lo, inner.lo, strict=True))
                yield Fragment(0, inner.volume, run.file, at, None, None, Box(corner, inner.size))
                at += size * inner.volume

    def sample(self, sampler: Sampler, start: int, count: int) -> bytes | None:
        """A few elements, where one run holds all of them."""
        size = self.dtype.itemsize
        for run in self.runs:
            if run.start <= start and start + count <= run.start + run.numel:
                at = run.byte_offset + size * (start - run.start)
                return sampler.read(run.file, at, size * count)
        return None


@dataclass(frozen=True, slots=True)
class Buffer:
    """One buffer of one model-parallel rank.

    Args:  optimizer: index of the chained one.  group: the rank.  chunk: of the virtual pipeline.
           dtype: of its parameters.  lengths: elements of each bucket, tails without padding.
           states: for each state its buckets; one for all where `is_joined`.
    """

    optimizer: int
    group: int
    chunk: int
    dtype: DType
    lengths: tuple[int, ...]
    states: Mapping[str, tuple[Bucket, ...]]
    is_joined: bool

    def ways(
        self, members: Sequence[Member], args: Arguments, shared: Sequence[str], *, is_first: bool
    ) -> Iterator[Places]:
        """Where every parameter may lie: bucket and first element, last parameter first."""
        if not self.is_joined:
            places = _walk(members, self.lengths)
            if places is not None:
                yield places
            return
        numel = sum(member.numel for member in members)
        for size, aligned in product(bucket_sizes(args, is_first, numel), (True, False)):
            laid = lay_buffer(members, size, data_parallel(args), shared, aligned=aligned)
            if (laid.numel,) == self.lengths:
                yield [(place.parameter, 0, place.start) for place in laid.placed]


def buffers_of(
    folder: Path,
    flat: Sequence[tuple[FlatKey, StoredTensor]],
    objects: Mapping[str, object],
    chunks: ChunkReader,
) -> list[Buffer]:
    """Every buffer that is stored, as tensors or as pickled ones.

    Raises: ReshardError[buffer-mismatch], and what `ChunkReader` raises.
    """
    stated = {}
    out: list[Buffer] = []
    for key, value in objects.items():
        match = _OBJECT.match(key)
        if match is None:
            continue
        rank = (int(match.group(1) or 0), int(match.group(2)))
        content = value[0] if isinstance(value, list) and len(value) == 1 else value
        if match.group(3) == "per_bucket_numel_unpadded":
            stated[rank] = content
        else:
            out += _joined(folder, rank, content)
    table: dict[tuple[int, int, int, str], dict[int, dict[str, StoredTensor]]] = {}
    for part, stored in flat:
        parts = table.setdefault((part.chained, part.group, part.buffer, part.kinds), {})
        parts.setdefault(part.bucket, {})[part.state] = stored
    chunk_of = _chunks((*key[:2], key[2], key[3]) for key in table)
    for (optimizer, group, index, kinds), by_bucket in table.items():
        known = [by_bucket[number] for number in sorted(by_bucket)]
        states = {
            state: tuple(_bucket(chunks, bucket[state]) for bucket in known) for state in known[0]
        }
        lengths = _lengths(stated.get((optimizer, group)), index) or tuple(
            next(iter(bucket.values())).shape[0] for bucket in known
        )
        dtype = dtype_of_name(kinds.strip("()").partition(",")[0].strip().removeprefix("torch."))
        if dtype is None or len(lengths) != len(known):
            raise _mismatch(folder, f"buffer {index} of group {group} is of {kinds}")
        chunk = chunk_of[optimizer, group, index, kinds]
        out.append(Buffer(optimizer, group, chunk, dtype, lengths, states, False))
    return out


def _chunks(keys: Iterator[tuple[int, int, int, str]]) -> dict[tuple[int, int, int, str], int]:
    """The model chunk of each buffer: they are numbered over chunks, one for each type in each."""
    out: dict[tuple[int, int, int, str], int] = {}
    seen: dict[tuple[int, int], tuple[int, set[str]]] = {}
    for optimizer, group, index, kinds in sorted(keys):
        chunk, types = seen.get((optimizer, group), (0, set()))
        if kinds in types:
            chunk, types = chunk + 1, set()
        seen[optimizer, group] = chunk, {*types, kinds}
        out[optimizer, group, index, kinds] = chunk
    return out


def _lengths(stated: object, index: int) -> tuple[int, ...] | None:
    """Elements of each bucket without padding, where the checkpoint says so."""
    if not isinstance(stated, list) or index >= len(stated) or not isinstance(stated[index], dict):
        return None
    values = list(stated[index].values())
    if len(values) != 1 or not isinstance(values[0], list):
        return None
    return tuple(n for n in values[0] if isinstance(n, int))


def _bucket(chunks: ChunkReader, stored: StoredTensor) -> Bucket:
    runs = []
    for chunk in stored.chunks:
        ref = chunks.open(stored, chunk)
        if ref.numel:
            runs.append(Run(chunk.lo[0], ref.numel, chunk.file, ref.byte_offset))
    return Bucket(stored.dtype, tuple(sorted(runs, key=lambda run: run.start)))


def _joined(folder: Path, rank: tuple[int, int], content: object) -> Iterator[Buffer]:
    """Buffers as `distrib_optim.pt` has them: one tensor for all buckets of each."""
    if not isinstance(content, dict):
        raise _mismatch(folder, f"the state of group {rank[1]} is a {type(content).__name__}")
    found = [
        (index, kinds, tensors)
        for index, by_kinds in content.items()
        if isinstance(index, int) and isinstance(by_kinds, dict)
        for kinds, tensors in by_kinds.items()
    ]
    keys = [(*rank, index, str(kinds)) for index, kinds, _ in found]
    chunk_of = _chunks(iter(keys))
    for key, (index, kinds, tensors) in zip(keys, found, strict=True):
        dtype = dtype_of_global(kinds[0]) if isinstance(kinds, tuple) and kinds else None
        states = {
            "master" if name in MASTERS else str(name): ref
            for name, ref in (tensors.items() if isinstance(tensors, dict) else ())
            if isinstance(ref, TensorRef)
        }
        lengths = {ref.numel for ref in states.values()}
        if dtype is None or len(lengths) != 1:
            raise _mismatch(folder, f"buffer {index} of group {rank[1]} is not one flat tensor")
        buckets = {
            state: (
                Bucket(
                    ref.dtype,
                    (Run(0, ref.numel, str(Path(ref.file).relative_to(folder)), ref.byte_offset),),
                ),
            )
            for state, ref in states.items()
        }
        yield Buffer(*rank, chunk_of[key], dtype, tuple(lengths), buckets, True)


def _walk(members: Sequence[Member], lengths: Sequence[int]) -> Places | None:
    """Place parameters in buckets of known lengths; None when they do not add up."""
    out: Places = []
    bucket, at = 0, 0
    for member in reversed(members):
        at = -(-at // _ALIGNMENT) * _ALIGNMENT
        if bucket < len(lengths) and at + member.numel > lengths[bucket]:
            bucket, at = bucket + 1, 0
        if bucket >= len(lengths) or at + member.numel > lengths[bucket]:
            return None
        out.append((member, bucket, at))
        at += member.numel
    return out if bucket == len(lengths) - 1 and at == lengths[bucket] else None


def _mismatch(folder: Path, why: str) -> Exception:
    return source_error(
        "buffer-mismatch",
        f"how the parameters lie in the optimizer's buckets of {folder} could not be found",
        notes=[why],
        helps=["keep the weights with `--states weights`"],
    )
