"""Optimizer states as flat buckets of a distributed checkpoint.

`dp_reshardable`, `fully_sharded_bucket_space` and `dp_zero_gather_scatter` do not say which
parameters lie in their buckets. The order of a rank's parameters is taken from the order in which
the weights are listed, and is accepted only when every master rounds to its weight.
Source: megatron/core/optimizer/distrib_optimizer.py `sharded_param_state_dp_reshardable`,
`sharded_param_state_dp_zero` (core 0.5 to 0.20).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reshard.algebra.box import Box
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.formats.megatron.buffers import Buffer, no_way, stored_buffers
from reshard.formats.megatron.flat_members import Place, RankMembers
from reshard.formats.megatron.names import FlatKey
from reshard.models.run_arguments import Arguments
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import StoredTensor
from reshard.storage.pickle_values import dtype_of_name
from reshard.store.source_files import SourceFiles

COPY = "copy"
"""The mesh axis of the copies that ranks keep of one state."""

_BUCKETS = "the optimizer's buckets of {}"

_OBJECT = re.compile(
    r"(?:chained_(\d+)\.)?optimizer\.distributed\.dp_group_idx_(\d+)\."
    r"(param_state|per_bucket_numel_unpadded)/"
)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A buffer, and whose it is.

    Args:  optimizer: index of the chained one.  group: the model-parallel rank.
           chunk: of the virtual pipeline.
    """

    optimizer: int
    group: int
    chunk: int
    buffer: Buffer


def flat_tensors(
    flat: Sequence[tuple[FlatKey, StoredTensor]],
    objects: Mapping[str, object],
    args: Arguments,
    chunks: ChunkReader,
    weights: Sequence[LocalTensor],
    files: SourceFiles,
) -> list[LocalTensor]:
    """Every state that the buckets hold, as boxes of the parameters' tensors.

    Args:  objects: pickled ones by key.
    Raises: ReshardError[buffer-mismatch], and what `ChunkReader` raises.
    """
    reader = _Reader(args, RankMembers(weights, args), files)
    reader.read(_stored(flat, objects, chunks))
    copied = {(name, state) for name, state, copy in reader.fragments if copy}
    return [
        LocalTensor(
            name,
            state,
            ((COPY, copy),) if (name, state) in copied else (),
            reader.members.tensors[name].shape,
            reader.dtypes[state],
            tuple(fragments),
        )
        for (name, state, copy), fragments in reader.fragments.items()
    ]


def _stored(
    flat: Sequence[tuple[FlatKey, StoredTensor]],
    objects: Mapping[str, object],
    chunks: ChunkReader,
) -> list[_Stored]:
    """Every buffer that is stored, as tensors or as pickled ones; by optimizer and rank."""
    numels = {}
    buffers: list[tuple[int, int, int, Buffer]] = []
    for key, value in objects.items():
        match = _OBJECT.match(key)
        if match is None:
            continue
        rank = (int(match.group(1) or 0), int(match.group(2)))
        content = value[0] if isinstance(value, list) and len(value) == 1 else value
        if match.group(3) == "per_bucket_numel_unpadded":
            numels[rank] = content
            continue
        for index, buffer in stored_buffers(content, chunks.root):
            if buffer is None or buffer.dtype is None or buffer.form != "joined":
                raise no_way(
                    _BUCKETS.format(chunks.root),
                    f"buffer {index} of group {rank[1]} is not one flat tensor",
                )
            buffers.append((*rank, index, buffer))
    table: dict[tuple[int, int, int, str], dict[int, dict[str, StoredTensor]]] = {}
    for part, tensor in flat:
        parts = table.setdefault((part.chained, part.group, part.buffer, part.kinds), {})
        parts.setdefault(part.bucket, {})[part.state] = tensor
    for (optimizer, group, index, kinds), by_bucket in table.items():
        buckets = [by_bucket[number] for number in sorted(by_bucket)]
        lengths = _lengths(numels.get((optimizer, group)), index) or tuple(
            next(iter(bucket.values())).shape[0] for bucket in buckets
        )
        dtype = dtype_of_name(kinds.strip("()").partition(",")[0].strip().removeprefix("torch."))
        if dtype is None or len(lengths) != len(buckets):
            raise no_way(
                _BUCKETS.format(chunks.root), f"buffer {index} of group {group} is of {kinds}"
            )
        states = {s: tuple(_flat(chunks, bucket[s]) for bucket in buckets) for s in buckets[0]}
        buffers.append((optimizer, group, index, Buffer(dtype, lengths, states, "stated")))
    return _by_chunk(buffers)


def _by_chunk(buffers: Sequence[tuple[int, int, int, Buffer]]) -> list[_Stored]:
    """With the model chunk of each: they are numbered over chunks, one for each type in each."""
    out: list[_Stored] = []
    types: set[DType | None] = set()
    for optimizer, group, _, buffer in sorted(buffers, key=lambda item: item[:3]):
        same = bool(out) and (out[-1].optimizer, out[-1].group) == (optimizer, group)
        chunk = out[-1].chunk if same else 0
        if not same or buffer.dtype in types:
            chunk, types = chunk + same, set()
        types.add(buffer.dtype)
        out.append(_Stored(optimizer, group, chunk, buffer))
    return out


def _lengths(numels: object, index: int) -> tuple[int, ...] | None:
    """Elements of each bucket without padding, where the checkpoint says so."""
    if not isinstance(numels, list) or index >= len(numels) or not isinstance(numels[index], dict):
        return None
    values = list(numels[index].values())
    if len(values) != 1 or not isinstance(values[0], list):
        return None
    return tuple(n for n in values[0] if isinstance(n, int))


def _flat(chunks: ChunkReader, tensor: StoredTensor) -> LocalTensor:
    runs = []
    for chunk in tensor.chunks:
        ref = chunks.open(tensor, chunk)
        if ref.numel:
            runs.append(Fragment(chunk.lo[0], ref.numel, chunk.file, ref.byte_offset))
    runs.sort(key=lambda run: run.start)
    return LocalTensor(tensor.name, "", (), tensor.shape, tensor.dtype, tuple(runs))


class _Reader:
    """Places the parameters of one rank after the other.

    Attributes:  fragments: by name, state, and number of the copy: ranks that hold the same have
                            states of it each.
    """

    def __init__(self, args: Arguments, members: RankMembers, files: SourceFiles) -> None:
        self._args = args
        self._files = files
        self.members = members
        self.fragments: dict[tuple[str, str, int], list[Fragment]] = {}
        self.dtypes: dict[str, DType] = {}
        self._layers: dict[tuple[int, int], range] = {}
        self._copies: dict[tuple[str, str, Box], int] = {}

    def read(self, buffers: Sequence[_Stored]) -> None:
        """Find the parameters of every buffer: dense ones first, which tell the stages' layers."""
        optimizers = sorted({item.optimizer for item in buffers})
        chunks = 1 + max(item.chunk for item in buffers)
        if len(optimizers) > 2:
            raise self._no_way(f"it has {len(optimizers)} optimizers, not one or two")
        # Chunk major, then stage: how the layers lie in order.
        for item in sorted(buffers, key=lambda b: (b.optimizer, b.chunk, b.group)):
            is_last = item.optimizer == optimizers[-1]
            self._buffer(item, None if len(optimizers) == 1 else is_last, chunks)
        layers = sum(map(len, self._layers.values()))
        if layers != self.members.layers:
            raise self._no_way(f"its buffers have {layers} of {self.members.layers} layers")

    def _buffer(self, item: _Stored, experts: bool | None, chunks: int) -> None:
        pp, eps, etps = self._args.size("pp"), self._args.size("ep"), self._args.expert_tp
        tps = etps if experts else self._args.size("tp")
        tp, rest = item.group % tps, item.group // tps
        ep, stage = (rest % eps, rest // eps) if experts else (0, rest)
        key, total = (item.chunk, stage), self.members.layers
        start = sum(map(len, self._layers.values()))
        usual = total // (chunks * pp)
        counts = sorted(range(total - start + 1), key=lambda n: n != usual)
        known = self._layers.get(key)
        assert item.buffer.dtype is not None
        for layers in [known] if known is not None else [range(start, start + n) for n in counts]:
            place = Place(
                (tp, tps),
                (tp % etps, etps),
                (ep, eps if experts else 1),
                layers,
                key == (0, 0),
                key == (chunks - 1, pp - 1),
                experts,
                item.buffer.dtype,
            )
            if self._fit(item, place):
                self._layers[key] = layers
                return
        numel = sum(item.buffer.lengths)
        raise self._no_way(f"group {item.group} of {numel} elements fits no known order")

    def _fit(self, item: _Stored, place: Place) -> bool:
        """Take what a buffer holds, if one order of a rank's parameters is the right one."""
        orders, shared = self.members.orders(place), self.members.shared(place)
        ways = item.buffer.ways(orders, self._args, shared, self._files, bucketed=place.first)
        if len(ways) > 1:
            raise self._no_way(f"{len(ways)} orders fit group {item.group}")
        for way in ways:
            for _, part, tensor in item.buffer.states_of(way, self._args, self._files):
                self.dtypes[tensor.state] = tensor.dtype
                key = (tensor.name, tensor.state, part.box)
                copy = self._copies[key] = self._copies.get(key, -1) + 1
                place_of = self.fragments.setdefault((tensor.name, tensor.state, copy), [])
                place_of += tensor.fragments
        return bool(ways)

    def _no_way(self, why: str) -> ReshardError:
        return no_way(_BUCKETS.format(self._files.root), why)
