"""Reads a legacy `torch` checkpoint."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.megatron.cuts import LAYER, is_expert, layout_text
from reshard.formats.megatron.legacy import (
    Chunk,
    chunks_of,
    coord_of,
    is_tied,
    known_name,
    local_tensor,
    stage_layers,
    stored_shape,
)
from reshard.formats.megatron.legacy_states import DISTRIBUTED, State, states_of
from reshard.formats.megatron.optimizer_ids import GroupMembers
from reshard.formats.megatron.ranks import Ranks, read_ranks
from reshard.formats.megatron.self_check import Sampler
from reshard.formats.megatron.training import Groups, training_of
from reshard.plan.catalog import Catalog, Fragment, LocalTensor, SourceFile

_EXPERT = ".local_experts."


def read_legacy(folder: Path) -> Catalog:
    """The catalog of an iteration's folder with `mp_rank_*`.

    Raises: ReshardError[foreign-rank | missing-ranks | mixed-runs | no-arguments | no-model |
            uncovered-parameter | unsupported-expert-tp | ambiguous-optimizer-ids |
            buffer-mismatch | unknown-optimizer], and what `open_torch_file` raises.
    """
    ranks = read_ranks(folder)
    chunks = {rank.file: chunks_of(rank) for rank in ranks.files}
    every = tuple(chunk for items in chunks.values() for chunk in items)
    vpp = max(len(items) for items in chunks.values())
    _check_experts(every, ranks)
    tied = is_tied(ranks)
    stages = stage_layers(every, ranks, vpp)
    tensors: list[LocalTensor] = []
    shapes: dict[str, tuple[int, ...]] = {}
    groups = Groups()
    sampler = Sampler(folder)
    try:
        for rank in ranks.files:
            for chunk in chunks[rank.file]:
                tensors += _weights(chunk, ranks, vpp, tied, shapes)
            states, assigned = states_of(rank, chunks[rank.file], ranks, folder, sampler)
            tensors += _states(states, chunks[rank.file], ranks, vpp)
            groups.add(assigned, _namer(chunks[rank.file], ranks, vpp, tied, stages))
    finally:
        sampler.close()
    mesh = {"pp": ranks.pp, "tp": ranks.tp, "ep": ranks.ep, "dp": ranks.args.size("dp")}
    if vpp > 1:
        mesh = {"vpp": vpp, **mesh}
    if any(is_expert(name) for name in shapes) and ranks.args.expert_tp != ranks.tp:
        mesh["etp"] = ranks.args.expert_tp
    return Catalog(
        format="megatron",
        version=str(ranks.files[0].root.get("checkpoint_version", "")),
        root=str(folder.resolve()),
        mesh=mesh,
        tensors=tuple(tensors),
        layout=layout_text(shapes, ranks.args, stages, vpp),
        layout_name="megatron",
        training=training_of(ranks.files[0].root, groups, [f.root for f in ranks.files]),
        config=ranks.args.config(),
        aliases={"output_layer.weight": "embedding.word_embeddings.weight"} if tied else None,
        buffers=tuple(sorted({_whole(n, stages, 0, 0, 1) for n in shapes if "expert_bias" in n})),
        files=_files(folder, ranks),
    )


def _weights(
    chunk: Chunk, ranks: Ranks, vpp: int, tied: bool, shapes: dict[str, tuple[int, ...]]
) -> Iterable[LocalTensor]:
    for name, ref in chunk.tensors.items():
        if name.endswith("_extra_state"):
            yield local_tensor(
                f"{chunk.rank.file}:{chunk.vpp}:{name}", "extra", (), ref, chunk.rank.file
            )
            continue
        known = known_name(name, tied)
        coord = coord_of(chunk, name, ranks, vpp)
        assert coord is not None
        shape = stored_shape(name, ref, ranks.args)
        shapes.setdefault(known, shape)
        yield local_tensor(name, "param", coord, ref, chunk.rank.file, shape)


def _states(
    states: Sequence[State], chunks: Sequence[Chunk], ranks: Ranks, vpp: int
) -> Iterable[LocalTensor]:
    for item in states:
        parameter = item.parameter
        coord = coord_of(chunks[parameter.chunk], parameter.name, ranks, vpp)
        assert coord is not None
        name = parameter.name
        if item.ref is None:
            assert item.value is not None
            data = struct.pack("<f", item.value)
            number = Fragment(0, 1, item.file, 0, None, data)
            yield LocalTensor(name, item.state, coord, (), DType.F32, (number,))
            continue
        ref = item.ref
        if ref.shape == () or item.state == "step":
            yield local_tensor(name, item.state, coord, ref, item.file, ())
            continue
        shape = stored_shape(parameter.name, parameter.ref, ranks.args)
        if ref.shape == parameter.ref.shape:
            yield local_tensor(name, item.state, coord, ref, item.file, shape)
            continue
        at = ref.byte_offset + item.start * ref.dtype.itemsize
        run = Fragment(0, parameter.ref.numel, item.file, at)
        yield LocalTensor(name, item.state, coord, shape, ref.dtype, (run,))


def _check_experts(chunks: Iterable[Chunk], ranks: Ranks) -> None:
    etp = ranks.args.expert_tp
    if etp in (1, ranks.tp) or not any(is_expert(n) for c in chunks for n in c.tensors):
        return
    raise source_error(
        "unsupported-expert-tp",
        f"experts are cut over {etp} ranks, dense layers over {ranks.tp}",
        notes=["only expert_tensor_parallel_size 1, or that of the dense layers, is read"],
        helps=["save it as `torch_dist`, which says where each part belongs"],
    )


def _namer(
    chunks: Sequence[Chunk], ranks: Ranks, vpp: int, tied: bool, stages: Sequence[int]
) -> Mapping[tuple[int, str], str]:
    """Global names of a rank's parameters, for the param groups."""
    rank = chunks[0].rank
    experts = ranks.args.integer("num_experts") or 0
    out = {}
    for index, chunk in enumerate(chunks):
        first = sum(stages[: chunk.vpp * ranks.pp + rank.pp])
        for name in chunk.parameters:
            shift = rank.ep * (experts // ranks.ep)
            out[index, name] = _whole(known_name(name, tied), stages, first, shift, len(stages))
    return out


def _whole(name: str, stages: Sequence[int], first: int, expert: int, count: int) -> str:
    """A name with its layer and its expert numbered over all ranks."""
    if first:
        name = LAYER.sub(
            lambda m: m.group(1) + str(int(m.group(0)[len(m.group(1)) :]) + first), name, count=1
        )
    head, found, tail = name.partition(_EXPERT)
    if found and expert:
        number, dot, rest = tail.partition(".")
        name = f"{head}{found}{int(number) + expert}{dot}{rest}"
    return name


def _files(folder: Path, ranks: Ranks) -> tuple[SourceFile, ...]:
    out = []
    for rank in ranks.files:
        for file in (Path(rank.file), Path(rank.file).with_name(DISTRIBUTED)):
            path = folder / file
            if path.exists():
                stat = path.stat()
                out.append(SourceFile(str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(out)


__all__ = ["GroupMembers", "read_legacy"]
