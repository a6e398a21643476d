"""`dp_reshardable`: optimizer states as flat buckets of a distributed checkpoint.

The buckets do not say which parameters lie in them. The order of a module's parameters is taken
from the order in which the weights are listed, or from the other known order, and is accepted only
when every master rounds to its weight.
Source: megatron/core/optimizer/distrib_optimizer.py `sharded_param_state_dp_reshardable`
(core 0.14 to 0.20).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.algebra.flat import flat_to_boxes
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.dist_names import FlatKey
from reshard.formats.megatron.self_check import Sampler, rounds_to, samples
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import Metadata, StoredTensor

_ALIGNMENT = 64
_STACKED = re.compile(r"(^|\.)layers\.(?!\d)")


@dataclass(frozen=True, slots=True)
class _Member:
    """A parameter of one rank: boxes of a stored tensor, one behind the other."""

    name: str
    boxes: tuple[Box, ...]

    @property
    def numel(self) -> int:
        return sum(box.volume for box in self.boxes)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of a flat bucket as it lies in a file."""

    start: int
    numel: int
    file: str
    byte_offset: int


def flat_tensors(
    folder: Path,
    metadata: Metadata,
    flat: Sequence[tuple[FlatKey, StoredTensor]],
    objects: Mapping[str, object],
    args: Arguments,
    chunks: ChunkReader,
    weights: Sequence[LocalTensor],
) -> Iterator[LocalTensor]:
    """Every state that the buckets hold, as boxes of the parameters' tensors.

    Raises: ReshardError[buffer-mismatch].
    """
    if args.size("ep") > 1 or any(key.chained for key, _ in flat):
        raise _mismatch(folder, "experts over several ranks have buffers of their own")
    params = {t.name: t for t in weights if t.state == "param"}
    buckets: dict[int, dict[int, dict[int, dict[str, StoredTensor]]]] = {}
    for key, stored in flat:
        by_buffer = buckets.setdefault(key.group, {}).setdefault(key.buffer, {})
        by_buffer.setdefault(key.bucket, {})[key.state] = stored
    fragments: dict[tuple[str, str], list[Fragment]] = {}
    sampler = Sampler(folder)
    try:
        for group, buffers in sorted(buckets.items()):
            if list(buffers) != [0]:
                raise _mismatch(folder, f"group {group} has {len(buffers)} buffers, not one")
            _group(group, buffers[0], args, chunks, params, sampler, folder, fragments)
    finally:
        sampler.close()
    for (name, state), found in fragments.items():
        dtype = next(
            stored.dtype
            for by_buffer in buckets.values()
            for by_bucket in by_buffer.values()
            for by_state in by_bucket.values()
            for kind, stored in by_state.items()
            if kind == state
        )
        yield LocalTensor(name, state, (), params[name].shape, dtype, tuple(found))


def _group(
    group: int,
    buckets: Mapping[int, Mapping[str, StoredTensor]],
    args: Arguments,
    chunks: ChunkReader,
    params: Mapping[str, LocalTensor],
    sampler: Sampler,
    folder: Path,
    out: dict[tuple[str, str], list[Fragment]],
) -> None:
    tp = args.size("tp")
    lengths = [next(iter(buckets[index].values())).shape[0] for index in sorted(buckets)]
    runs = {
        state: [_bucket_runs(chunks, buckets[index][state]) for index in sorted(buckets)]
        for state in next(iter(buckets.values()))
    }
    for members in _orders(params, group % tp, group // tp, tp, args.size("pp")):
        places = _place(members, lengths)
        if places is None:
            continue
        if "master" in runs and not _fits(places, runs["master"], params, sampler):
            continue
        for member, bucket, start in places:
            for state, by_bucket in runs.items():
                found = out.setdefault((member.name, state), [])
                at = start
                for box in member.boxes:
                    found += _fragments(by_bucket[bucket], at, box)
                    at += box.volume
        return
    raise _mismatch(folder, f"group {group} of {sum(lengths)} elements fits no known order")


def _orders(
    params: Mapping[str, LocalTensor], tp_rank: int, stage: int, tp: int, pp: int
) -> Iterator[list[_Member]]:
    """The parameters of one rank in registration order: as listed; norms first in their module."""
    names = list(params)
    listed = _members(params, names, tp_rank, stage, tp, pp)
    yield listed
    # The local spec registers a norm before the linear layer that its key is filed under.
    moved = sorted(names, key=lambda n: (_module_rank(n), names.index(n)))
    yield _members(params, moved, tp_rank, stage, tp, pp)


def _module_rank(name: str) -> tuple[int, int]:
    order = (
        ("embedding.", 0),
        ("layers.self_attention.linear_qkv.layer_norm", 1),
        ("input_layernorm", 1),
        ("layers.self_attention.linear_proj", 2),
        ("layers.self_attention.linear_qkv", 3),
        ("layers.self_attention.q_layernorm", 4),
        ("layers.self_attention.k_layernorm", 5),
        ("layers.mlp.linear_fc1.layer_norm", 6),
        ("pre_mlp_layernorm", 6),
        ("layers.mlp.linear_fc1", 7),
        ("layers.mlp.linear_fc2", 8),
        ("final_layernorm", 9),
        ("output_layer", 10),
    )
    for part, rank in order:
        if part in name:
            return rank, 1 if name.endswith("bias") else 0
    return 8, 0


def _members(
    params: Mapping[str, LocalTensor],
    names: Sequence[str],
    tp_rank: int,
    stage: int,
    tp: int,
    pp: int,
) -> list[_Member]:
    layers = {name: params[name].shape[0] for name in names if _STACKED.search(name)}
    count = max(layers.values(), default=0)
    per_stage = count // pp if pp and count else 0
    before, inside, after = [], [], []
    for name in names:
        if name in layers:
            inside.append(name)
        elif name.startswith("embedding."):
            before.append(name)
        else:
            after.append(name)
    out = []
    if stage == 0:
        out += [_Member(n, _boxes(params[n], None, tp_rank, tp)) for n in before]
    for layer in range(stage * per_stage, (stage + 1) * per_stage):
        out += [_Member(n, _boxes(params[n], layer, tp_rank, tp)) for n in inside]
    if stage == pp - 1:
        out += [_Member(n, _boxes(params[n], None, tp_rank, tp)) for n in after]
    return out


def _boxes(tensor: LocalTensor, layer: int | None, tp_rank: int, tp: int) -> tuple[Box, ...]:
    """What one rank holds of a tensor: its chunks, which a copied tensor has only once."""
    found = []
    for fragment in tensor.fragments:
        box = fragment.box or Box.whole(tensor.shape)
        if layer is None or box.lo[0] == layer:
            found.append(box)
    found.sort(key=lambda box: box.lo)
    if tp == 1 or len(found) < tp:
        return tuple(found)
    return tuple(found[tp_rank::tp])


def _place(
    members: Sequence[_Member], lengths: Sequence[int]
) -> list[tuple[_Member, int, int]] | None:
    """Every parameter's bucket and start, last parameter first; None when they do not add up."""
    out: list[tuple[_Member, int, int]] = []
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


def _bucket_runs(chunks: ChunkReader, stored: StoredTensor) -> list[_Run]:
    out = []
    for chunk in stored.chunks:
        ref = chunks.open(stored, chunk)
        if ref.numel:
            out.append(_Run(chunk.lo[0], ref.numel, chunk.file, ref.byte_offset))
    return sorted(out, key=lambda run: run.start)


def _fragments(runs: Sequence[_Run], start: int, box: Box) -> Iterator[Fragment]:
    """Elements `[start, start + volume)` of a bucket as boxes within a box."""
    stop = start + box.volume
    for run in runs:
        lo, hi = max(run.start, start), min(run.start + run.numel, stop)
        if lo >= hi:
            continue
        at = run.byte_offset + 4 * (lo - run.start)
        for inner in flat_to_boxes(lo - start, hi - lo, box.size):
            corner = tuple(a + b for a, b in zip(box.lo, inner.lo, strict=True))
            yield Fragment(0, inner.volume, run.file, at, None, None, Box(corner, inner.size))
            at += 4 * inner.volume


def _fits(
    places: Sequence[tuple[_Member, int, int]],
    masters: Sequence[Sequence[_Run]],
    params: Mapping[str, LocalTensor],
    sampler: Sampler,
) -> bool:
    """Whether samples of every master round to its weight."""
    for member, bucket, start in places:
        at = start
        weight = params[member.name]
        by_box = {f.box or Box.whole(weight.shape): f for f in weight.fragments}
        size = weight.dtype.itemsize
        for box in member.boxes:
            fragment = by_box[box]
            for first, count in samples(prod(box.size)):
                master = _sample(sampler, masters[bucket], at + first, count)
                value = sampler.read(
                    fragment.file, fragment.byte_offset + size * first, size * count
                )
                if master is not None and not rounds_to(master, value, weight.dtype):
                    return False
            at += box.volume
    return True


def _sample(sampler: Sampler, runs: Sequence[_Run], start: int, count: int) -> bytes | None:
    for run in runs:
        if run.start <= start and start + count <= run.start + run.numel:
            return sampler.read(run.file, run.byte_offset + 4 * (start - run.start), 4 * count)
    return None


def _mismatch(folder: Path, why: str) -> ReshardError:
    return source_error(
        "buffer-mismatch",
        f"how the parameters lie in the optimizer's buckets of {folder} could not be found",
        notes=[why, "the flat buffers are checked against the weights, which they must round to"],
        helps=["keep the weights with `--states weights`"],
    )
