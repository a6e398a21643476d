"""Optimizer states as flat buckets of a distributed checkpoint.

`dp_reshardable`, `fully_sharded_bucket_space` and `dp_zero_gather_scatter` do not say which
parameters lie in their buckets. The checkpoint lists its weights in the order of the module that
saved them, layers and experts stacked; a rank's own parameters are boxes of these: those of its
stage's layers, of its tensor parallel rank, and of its experts. An order of them is accepted only
when every master rounds to its weight.
Source: megatron/core/optimizer/distrib_optimizer.py `sharded_param_state_dp_reshardable`,
`sharded_param_state_dp_zero`; megatron/core/transformer/{transformer_block,mlp,moe/experts}.py
`sharded_state_dict` (core 0.5 to 0.20).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from reshard.algebra.box import Box
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.formats.megatron.buffers import Buffer, Member, Part, no_way, stored_buffers
from reshard.formats.megatron.masters import box_of
from reshard.formats.megatron.modules import is_buffer, is_expert, is_vocabulary
from reshard.formats.megatron.names import FlatKey, layer_of, stacked_axes
from reshard.models.megatron_arguments import EMBEDDING, OUTPUT
from reshard.models.run_arguments import Arguments
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.run.states import PARAM
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import StoredTensor
from reshard.storage.pickle_values import dtype_of_name
from reshard.store.source_files import SourceFiles

_STACKED = re.compile(r"^(?!mtp\.)(.*?layers\.)(?!\d)")
_EXPERT = re.compile(r"(\.experts\.experts\.)(\d+)\.")
_FIRST, _SECOND = "_w", "_v"
"""How halves of a tensor end, which are stored apart."""


@dataclass(frozen=True, slots=True)
class Place:
    """A rank, and what of the model it has.

    Args:  dense, expert: its number and how many there are, among the ranks that cut its dense
                          tensors, and an expert.  ep: among those that share experts.
           layers: of its chunk.  first, last: whether its chunk is the first, the last of all.
           experts: whether the optimizer has experts alone, or none; None for both.
           dtype: of the parameters.
    """

    dense: tuple[int, int]
    expert: tuple[int, int]
    ep: tuple[int, int]
    layers: range
    first: bool
    last: bool
    experts: bool | None
    dtype: DType


class RankMembers:
    """The weights of a checkpoint, as ranks had them."""

    def __init__(self, weights: Sequence[LocalTensor], args: Arguments) -> None:
        self._args = args
        self.tensors = {t.name: t for t in weights if t.state == PARAM and not is_buffer(t.name)}
        self._has_mtp = any(name.startswith("mtp.") for name in self.tensors)
        tied = not args.get("untie_embeddings_and_output_weights") and args.size("pp") > 1
        self._tied = tied and OUTPUT not in self.tensors  # the last stage has a copy
        self._parts_of = {name: self._by_layer(tensor) for name, tensor in self.tensors.items()}
        self._inside = {n: self._layers(t) for n, t in self.tensors.items() if self._layers(t)}
        self.layers = max(self._inside.values(), default=0)
        singles = [int(m[2]) for m in map(_EXPERT.search, self.tensors) if m is not None]
        self._experts_apart = 1 + max(singles, default=-1)

    @staticmethod
    def _layers(tensor: LocalTensor) -> int:
        if _STACKED.match(tensor.name):
            return tensor.shape[0]
        layer = layer_of(tensor.name)
        return 0 if layer is None else layer[1] + 1

    def orders(self, place: Place) -> Iterator[list[Member]]:
        """The parameters of a rank in every order that is known: experts one by one, or matrix by
        matrix; and with the copies that the last stage may have of the embedding.
        """
        for by_expert in (True, False):
            for copies in self._copies() if place.last and not place.first else ((),):
                yield list(self._members(place, by_expert, copies))

    def _copies(self) -> tuple[tuple[str, ...], ...]:
        """What the last stage may have a copy of the embedding as: as the output layer where the
        two are tied, as itself for the prediction of several tokens.
        """
        tied = (OUTPUT,) if self._tied else ()
        return ((EMBEDDING, *tied), (EMBEDDING,), tied) if self._has_mtp else (tied,)

    def shared(self, place: Place) -> tuple[str, ...]:
        """The parameters that have a bucket of their own, since another stage has a copy."""
        if place.experts is True or (place.first and place.last):
            return ()
        if self._tied:
            return (EMBEDDING, OUTPUT)
        return (EMBEDDING,) if self._has_mtp else ()

    def _members(self, place: Place, by_expert: bool, copies: tuple[str, ...]) -> Iterator[Member]:
        before = [EMBEDDING] if EMBEDDING in copies and EMBEDDING in self.tensors else []
        behind = []
        for name in self.tensors:
            if name not in self._inside and name.startswith("embedding."):
                before += [name] * place.first
            elif name not in self._inside:
                behind += [name] * place.last
        yield from chain(*(self._one(name, (), place) for name in before))
        for layer in place.layers:
            yield from self._layer(layer, place, by_expert)
        yield from chain(*(self._one(name, (), place) for name in behind))
        if OUTPUT in copies and EMBEDDING in self.tensors:
            for member in self._one(EMBEDDING, (), place):
                yield Member(OUTPUT, member.parts)

    def _layer(self, layer: int, place: Place, by_expert: bool) -> Iterator[Member]:
        """One layer: experts stand where the first of them is listed."""
        experts: list[tuple[int, int, Member]] = []
        plain: list[Member | None] = []
        order: dict[str, int] = {}
        for name in self._inside:
            index = layer_of(name)
            if index is not None and index[1] != layer:
                continue
            lead = () if index is not None else (layer,)
            if not is_expert(name):
                plain += self._one(name, lead, place)
                continue
            if None not in plain:
                plain.append(None)
            matrix = order.setdefault(_EXPERT.sub(r"\1", name).removesuffix(_FIRST), len(order))
            for expert, member in self._experts(name, lead, place):
                experts.append((expert, matrix, member))
        experts.sort(key=lambda item: item[:2] if by_expert else (item[1], item[0]))
        for item in plain:
            if item is None:
                yield from (member for _, _, member in experts)
            else:
                yield item

    def _experts(
        self, name: str, lead: tuple[int, ...], place: Place
    ) -> Iterator[tuple[int, Member]]:
        """The experts that a rank has of one name."""
        single = _EXPERT.search(name)
        if single is not None:
            count, experts = self._experts_apart, [int(single[2])]
        else:
            count = self.tensors[name].shape[len(lead)]
            experts = list(range(count))
        number, ranks = place.ep
        share = range(number * count // ranks, (number + 1) * count // ranks)
        for expert in experts:
            if expert in share:
                inner = lead if single is not None else (*lead, expert)
                for member in self._one(name, inner, place):
                    yield expert, member

    def _one(self, name: str, lead: tuple[int, ...], place: Place) -> Iterator[Member]:
        """A parameter, unless the optimizer does not have it; halves of one are put together."""
        tensor = self.tensors[name]
        stem, first, second = name[: -len(_FIRST)], _FIRST, _SECOND
        is_second = name.endswith(second) and stem + first in self.tensors
        is_apart = place.experts is not None and place.experts != is_expert(name)
        if tensor.dtype != place.dtype or is_second or is_apart:
            return
        parts = self._parts(name, lead, place)
        if name.endswith(first) and stem + second in self.tensors:
            parts = [*parts, *self._parts(stem + second, lead, place)]
        if parts:
            yield Member(name, tuple(parts))

    def _parts(self, name: str, lead: tuple[int, ...], place: Place) -> list[Part]:
        """What one rank holds of a tensor: its chunks, which a copied tensor has only once.

        Args:  lead: layer and expert, where the tensor stacks them.
        """
        parts = self._parts_of[name].get(lead, [])
        number, ranks = place.expert if is_expert(name) else place.dense
        return parts[number::ranks] if len(parts) >= ranks else parts

    def _by_layer(self, tensor: LocalTensor) -> dict[tuple[int, ...], list[Part]]:
        """The fragments of a tensor in order, by layer and expert, where it stacks them."""
        out: dict[tuple[int, ...], list[Part]] = {}
        for fragment in tensor.fragments:
            box = box_of(tensor, fragment)
            numel = box.volume
            if is_vocabulary(tensor.name) and box.size:
                numel = self._args.unpadded(tensor.shape[0], box.lo[0], box.size)
            lead = box.lo[: stacked_axes(tensor.name)]
            out.setdefault(lead, []).append(Part(tensor, fragment, numel))
        return {lead: sorted(parts, key=lambda part: part.box.lo) for lead, parts in out.items()}


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
    reader.read(_buffers_in(flat, objects, chunks))
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


def _buffers_in(
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
        layers_of_stage = self._layers.get(key)
        assert item.buffer.dtype is not None
        choices = [range(start, start + n) for n in counts]
        for layers in choices if layers_of_stage is None else [layers_of_stage]:
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
