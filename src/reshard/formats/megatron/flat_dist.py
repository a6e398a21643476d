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
from pathlib import Path

from reshard.algebra.box import Box
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.buffers import Buffer, Flat, Member, Places, Run, stored_buffers
from reshard.formats.megatron.dist_names import FlatKey
from reshard.formats.megatron.flat_members import Members, Place
from reshard.formats.megatron.self_check import Sampler
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.run.states import MASTER
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import StoredTensor
from reshard.storage.pickle_values import dtype_of_name

COPY = "copy"
"""The mesh axis of the copies that ranks keep of one state."""

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
    folder: Path,
    flat: Sequence[tuple[FlatKey, StoredTensor]],
    objects: Mapping[str, object],
    args: Arguments,
    chunks: ChunkReader,
    weights: Sequence[LocalTensor],
) -> list[LocalTensor]:
    """Every state that the buckets hold, as boxes of the parameters' tensors.

    Args:  objects: pickled ones by key, as they were found.
    Raises: ReshardError[buffer-mismatch], and what `ChunkReader` raises.
    """
    buffers = _stored(folder, flat, objects, chunks)
    with Sampler(folder) as sampler:
        reader = _Reader(folder, args, Members(weights, args), sampler)
        reader.read(buffers)
    copied = {(name, state) for name, state, copy in reader.found if copy}
    return [
        LocalTensor(
            name,
            state,
            ((COPY, copy),) if (name, state) in copied else (),
            reader.members.tensors[name].shape,
            reader.dtypes[state],
            tuple(fragments),
        )
        for (name, state, copy), fragments in reader.found.items()
    ]


def _stored(
    folder: Path,
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
        for index, buffer in stored_buffers(content, folder):
            if buffer is None or buffer.dtype is None or buffer.form != "joined":
                why = f"buffer {index} of group {rank[1]} is not one flat tensor"
                raise _mismatch(folder, why)
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
            raise _mismatch(folder, f"buffer {index} of group {group} is of {kinds}")
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


def _flat(chunks: ChunkReader, tensor: StoredTensor) -> Flat:
    runs = []
    for chunk in tensor.chunks:
        ref = chunks.open(tensor, chunk)
        if ref.numel:
            runs.append(Run(chunk.lo[0], ref.numel, chunk.file, ref.byte_offset))
    return Flat(tensor.dtype, tuple(sorted(runs, key=lambda run: run.start)))


class _Reader:
    """Places the parameters of one rank after the other."""

    def __init__(self, folder: Path, args: Arguments, members: Members, sampler: Sampler) -> None:
        self._folder = folder
        self._args = args
        self._sampler = sampler
        self.members = members
        # By name, state, and number of the copy: ranks that hold the same have states of it each.
        self.found: dict[tuple[str, str, int], list[Fragment]] = {}
        self.dtypes: dict[str, DType] = {}
        self._layers: dict[tuple[int, int], range] = {}
        self._copies: dict[tuple[str, str, Box], int] = {}

    def read(self, buffers: Sequence[_Stored]) -> None:
        """Find the parameters of every buffer: dense ones first, which tell the stages' layers."""
        optimizers = sorted({item.optimizer for item in buffers})
        chunks = 1 + max(item.chunk for item in buffers)
        for optimizer in optimizers:
            experts = None if len(optimizers) == 1 else optimizer == optimizers[-1]
            if len(optimizers) > 2:
                raise _mismatch(
                    self._folder, f"it has {len(optimizers)} optimizers, not one or two"
                )
            share = [item for item in buffers if item.optimizer == optimizer]
            # Chunk major, then stage: how the layers lie in order.
            for item in sorted(share, key=lambda b: (b.chunk, b.group)):
                self._buffer(item, experts, chunks)
        layers_of_all = sum(len(layers) for layers in self._layers.values())
        if layers_of_all != self.members.layers:
            why = f"its buffers have {layers_of_all} of {self.members.layers} layers"
            raise _mismatch(self._folder, why)

    def _buffer(self, item: _Stored, experts: bool | None, chunks: int) -> None:
        pp, eps, etps = self._args.size("pp"), self._args.size("ep"), self._args.expert_tp
        tps = etps if experts else self._args.size("tp")
        tp, rest = item.group % tps, item.group // tps
        ep, stage = (rest % eps, rest // eps) if experts else (0, rest)
        key = (item.chunk, stage)
        start = sum(len(layers) for layers in self._layers.values())
        usual = self.members.layers // (chunks * pp)
        counts = sorted(range(self.members.layers - start + 1), key=lambda n: n != usual)
        known = self._layers.get(key)
        assert item.buffer.dtype is not None
        for layers in [known] if known is not None else [range(start, start + n) for n in counts]:
            place = Place(
                tp,
                tps,
                tp % etps,
                etps,
                ep,
                eps if experts else 1,
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
        why = f"group {item.group} of {numel} elements fits no known order"
        raise _mismatch(self._folder, why)

    def _fit(self, item: _Stored, place: Place) -> bool:
        """Take what a buffer holds, if one order of a rank's parameters is the right one."""
        ways: dict[tuple[object, ...], tuple[list[Member], Places]] = {}
        shared = self.members.shared(place)
        for members in self.members.orders(place):
            if sum(member.numel for member in members) > sum(item.buffer.lengths):
                continue
            for places in item.buffer.places(
                members, self._args, shared, self._sampler, bucketed=place.first
            ):
                ways.setdefault(tuple(zip(members, places, strict=True)), (members, places))
        if len(ways) > 1:
            raise _mismatch(self._folder, f"{len(ways)} orders fit group {item.group}")
        for members, places in ways.values():
            self._take(item.buffer, members, places)
        return bool(ways)

    def _take(self, buffer: Buffer, members: Sequence[Member], places: Places) -> None:
        lower = buffer.has_lower(members, self._args, self._sampler)
        for state, flats in buffer.states.items():
            is_lower = state == MASTER and lower
            self.dtypes[state] = DType.F32 if is_lower else flats[0].dtype
            for member, (bucket, at) in zip(reversed(members), reversed(places), strict=True):
                for part in member.parts:
                    key = (part.name, state, part.box)
                    copy = self._copies[key] = self._copies.get(key, -1) + 1
                    fragments = self.found.setdefault((part.name, state, copy), [])
                    fragments += flats[bucket].fragments(at, part, is_lower=is_lower)
                    at += part.box.volume


def _mismatch(folder: Path, why: str) -> ReshardError:
    return source_error(
        "buffer-mismatch",
        f"how the parameters lie in the optimizer's buckets of {folder} could not be found",
        notes=[why, "the flat buffers are checked against the weights, which they must round to"],
        helps=["keep the weights with `--states weights`"],
    )
