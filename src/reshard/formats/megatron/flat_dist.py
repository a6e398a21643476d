"""Optimizer states as flat buckets of a distributed checkpoint.

`dp_reshardable`, `fully_sharded_bucket_space` and `dp_zero_gather_scatter` do not say which
parameters lie in their buckets. The order of a rank's parameters is taken from the order in which
the weights are listed, and is accepted only when every master rounds to its weight.
Source: megatron/core/optimizer/distrib_optimizer.py `sharded_param_state_dp_reshardable`,
`sharded_param_state_dp_zero` (core 0.5 to 0.20).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reshard.algebra.box import Box
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.dist_names import FlatKey
from reshard.formats.megatron.flat_buffers import Buffer, buffers_of
from reshard.formats.megatron.flat_members import Member, Members, Place
from reshard.formats.megatron.modules import is_vocabulary
from reshard.formats.megatron.remainders import joined
from reshard.formats.megatron.self_check import (
    Sampler,
    are_remainders,
    rounds_to,
    samples,
    spread,
)
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import StoredTensor

COPY = "copy"
"""The mesh axis of the copies that ranks keep of one state."""

Found = dict[tuple[str, str, int], list[Fragment]]
"""By name, state, and number of the copy: ranks that hold the same have states of it each."""


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
    Raises: ReshardError[buffer-mismatch].
    """
    buffers = buffers_of(folder, flat, objects, chunks)
    tied = not args.get("untie_embeddings_and_output_weights") and args.size("pp") > 1
    sampler = Sampler(folder)
    reader = _Reader(folder, args, Members(weights, tied=tied), sampler)
    try:
        reader.read(buffers)
    finally:
        sampler.close()
    copied = {(name, state) for name, state, copy in reader.found if copy}
    return [
        LocalTensor(
            name,
            state,
            ((COPY, copy),) if (name, state) in copied else (),
            reader.members.tensors[name].shape,
            reader.dtypes[state],
            tuple(found),
        )
        for (name, state, copy), found in reader.found.items()
    ]


class _Reader:
    """Places the parameters of one rank after the other."""

    def __init__(self, folder: Path, args: Arguments, members: Members, sampler: Sampler) -> None:
        self._folder = folder
        self._args = args
        self._sampler = sampler
        self.members = members
        self.found: Found = {}
        self.dtypes: dict[str, DType] = {}
        self._layers: dict[tuple[int, int], range] = {}
        self._fragments: dict[str, dict[Box, Fragment]] = {}
        self._copies: dict[tuple[str, str, Box], int] = {}

    def read(self, buffers: Sequence[Buffer]) -> None:
        """Find the parameters of every buffer: dense ones first, which tell the stages' layers."""
        optimizers = sorted({buffer.optimizer for buffer in buffers})
        chunks = 1 + max(buffer.chunk for buffer in buffers)
        for optimizer in optimizers:
            experts = None if len(optimizers) == 1 else optimizer == optimizers[-1]
            if len(optimizers) > 2:
                raise self._mismatch(f"it has {len(optimizers)} optimizers, not one or two")
            mine = [buffer for buffer in buffers if buffer.optimizer == optimizer]
            # Chunk major, then stage: how the layers lie in order.
            for buffer in sorted(mine, key=lambda b: (b.chunk, b.group)):
                self._buffer(buffer, experts, chunks)
        done = sum(len(layers) for layers in self._layers.values())
        if done != self.members.layers:
            raise self._mismatch(f"its buffers have {done} of {self.members.layers} layers")

    def _buffer(self, buffer: Buffer, experts: bool | None, chunks: int) -> None:
        pp = self._args.size("pp")
        tps = self._args.expert_tp if experts else self._args.size("tp")
        etps = self._args.expert_tp
        tp, rest = buffer.group % tps, buffer.group // tps
        eps = self._args.size("ep")
        ep, stage = (rest % eps, rest // eps) if experts else (0, rest)
        key = (buffer.chunk, stage)
        known = self._layers.get(key)
        start = sum(len(layers) for layers in self._layers.values())
        usual = self.members.layers // (chunks * pp)
        counts = sorted(range(self.members.layers - start + 1), key=lambda n: n != usual)
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
                buffer.dtype,
            )
            if self._fit(buffer, place):
                self._layers[key] = layers
                return
        raise self._mismatch(
            f"group {buffer.group} of {sum(buffer.lengths)} elements fits no known order"
        )

    def _fit(self, buffer: Buffer, place: Place) -> bool:
        """Take what a buffer holds, if one order of a rank's parameters is the right one."""
        fitting: dict[tuple[object, ...], list[tuple[Member, int, int]]] = {}
        shared = self.members.shared(place)
        for members in self.members.orders(place):
            if sum(member.numel for member in members) > sum(buffer.lengths):
                continue
            for places in buffer.ways(members, self._args, shared, is_first=place.first):
                if self._rounds(buffer, places):
                    fitting.setdefault(tuple(places), places)
        if len(fitting) > 1:
            raise self._mismatch(f"{len(fitting)} orders fit group {buffer.group}")
        for places in fitting.values():
            self._take(buffer, places)
        return bool(fitting)

    def _take(self, buffer: Buffer, places: Sequence[tuple[Member, int, int]]) -> None:
        for state, by_bucket in buffer.states.items():
            dtype = by_bucket[0].dtype
            lower = state == "master" and self._holds_lower(buffer)
            self.dtypes[state] = DType.F32 if lower else dtype
            for member, bucket, start in places:
                at = start
                for name, box in member.parts:
                    copy = self._copies.get((name, state, box), 0)
                    self._copies[name, state, box] = copy + 1
                    runs = by_bucket[bucket].fragments(at, box)
                    found = self._joined(name, box, dtype, runs) if lower else tuple(runs)
                    self.found.setdefault((name, state, copy), []).extend(found)
                    at += box.volume

    def _joined(
        self, name: str, box: Box, dtype: DType, found: Iterable[Fragment]
    ) -> tuple[Fragment, ...]:
        weight = self.members.tensors[name]
        runs = (self._fragment(weight, box),)
        lower = LocalTensor(name, "master", (), weight.shape, dtype, tuple(found))
        return joined(replace(weight, fragments=runs), lower).fragments

    def _holds_lower(self, buffer: Buffer) -> bool:
        """Whether the masters of a buffer are lower halves: as int16, or as those numbers."""
        masters = buffer.states.get("master", ())
        if buffer.dtype != DType.BF16 or not masters:
            return False
        if masters[0].dtype == DType.I16:
            return True
        return (
            self._args.is_precise
            and masters[0].dtype == DType.F32
            and all(
                are_remainders(self._sampler.read(run.file, run.byte_offset + 4 * at, 4 * count))
                for bucket in masters
                for run in bucket.runs
                for at, count in spread(run.numel)
            )
        )

    def _rounds(self, buffer: Buffer, places: Sequence[tuple[Member, int, int]]) -> bool:
        """Whether samples of every master round to its weight."""
        masters = buffer.states.get("master")
        if masters is None or self._holds_lower(buffer):
            return True
        for member, bucket, start in places:
            at = start
            for name, box in member.parts:
                weight = self.members.tensors[name]
                fragment = self._fragment(weight, box)
                size = weight.dtype.itemsize
                for first, count in samples(self._checked(name, box)):
                    master = masters[bucket].sample(self._sampler, at + first, count)
                    value = self._sampler.read(
                        fragment.file, fragment.byte_offset + size * first, size * count
                    )
                    if master is not None and not rounds_to(master, value, weight.dtype):
                        return False
                at += box.volume
        return True

    def _checked(self, name: str, box: Box) -> int:
        """Elements of a box that must round: those before the padding of a vocabulary."""
        if not is_vocabulary(name) or not box.size:
            return box.volume
        rows = self._args.checked_rows(self.members.tensors[name].shape[0]) - box.lo[0]
        return max(0, min(rows, box.size[0])) * (box.volume // max(1, box.size[0]))

    def _fragment(self, weight: LocalTensor, box: Box) -> Fragment:
        table = self._fragments.get(weight.name)
        if table is None:
            whole = Box.whole(weight.shape)
            table = {fragment.box or whole: fragment for fragment in weight.fragments}
            self._fragments[weight.name] = table
        return table[box]

    def _mismatch(self, why: str) -> ReshardError:
        return source_error(
            "buffer-mismatch",
            "how the parameters lie in the optimizer's buckets of "
            f"{self._folder} could not be found",
            notes=[
                why,
                "the flat buffers are checked against the weights, which they must round to",
            ],
            helps=["keep the weights with `--states weights`"],
        )
