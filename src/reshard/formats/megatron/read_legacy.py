"""Reads a legacy `torch` checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError
from reshard.formats.megatron.catalog import catalog_of
from reshard.formats.megatron.distrib_optim import unread
from reshard.formats.megatron.fused_order import in_order
from reshard.formats.megatron.groups import Groups
from reshard.formats.megatron.layout_text import layout_text
from reshard.formats.megatron.legacy import (
    Chunk,
    chunks_of,
    coords_of,
    is_tied,
    known_name,
    local_tensor,
    stored_shape,
)
from reshard.formats.megatron.legacy_states import State, states_of
from reshard.formats.megatron.modules import EXTRA_STATE, Modules, is_expert, tied_names
from reshard.formats.megatron.ranks import DISTRIBUTED, Ranks, read_ranks
from reshard.formats.megatron.self_check import Sampler
from reshard.formats.megatron.stacks import Stack, shifted, stacks_of
from reshard.plan.catalog import Catalog, Fragment, Left, LocalTensor, SourceFile
from reshard.run.states import EXTRA, PARAM, STEP
from reshard.storage.torch_file import TensorRef, open_torch_file

_EXPERT = ".local_experts."


def read_legacy(folder: Path, *, strict: bool = True) -> Catalog:
    """The catalog of an iteration's folder with `mp_rank_*`.

    Args:  strict: whether the checkpoint must describe itself.
    Raises: ReshardError[foreign-rank | missing-ranks | mixed-runs | no-arguments | no-model |
            uncovered-parameter | unsupported-expert-tp | glu-mismatch | interleaved-glu |
            fused-rows], and what `open_torch_file` raises. What is wrong with the optimizer alone
            is kept in the catalog.
    """
    ranks = read_ranks(folder, strict=strict)
    model = _Model.of(ranks)
    tensors = [t for chunks in model.chunks.values() for c in chunks for t in _weights(c, model)]
    cut = {"tp": ranks.tp, "etp": ranks.etp}
    modules = Modules(model.shapes, ranks.args, cut, model.pieces(), strict=strict)
    states: list[LocalTensor] = []
    groups = Groups()
    withheld: tuple[Diagnostic, ...] = ()
    try:
        with Sampler(folder) as sampler:
            for rank in ranks.files:
                chunks = model.chunks[rank.file]
                tensors_of_rank, members = states_of(rank, chunks, ranks, folder, sampler)
                for item in tensors_of_rank:
                    states += _state(item, chunks[item[0].chunk], model)
                names = model.global_names(chunks)
                for group in members:
                    groups.add(group.group, [names[p.chunk, p.name] for p in group.members])
    except ReshardError as error:
        withheld, states, groups = error.diagnostics, [], Groups()
    rows = _rows(model)
    true = ranks.args.true_vocabulary(rows)
    vocabulary = true if true != rows else None
    return catalog_of(
        folder,
        ranks.files[0].root,
        ranks.args,
        tensors,
        states,
        groups,
        layout=layout_text(
            model.shapes, ranks, model.stacks, model.vpp, modules, vocabulary, strict=strict
        ),
        framework={"form": "torch"},
        mesh=_mesh(model),
        files=_files(folder, ranks),
        names=model.names(),
        rows=rows,
        vocabulary=vocabulary,
        rng=[file.root.get("rng_state") for file in ranks.files],
        version=str(ranks.version),
        aliases=_aliases(model),
        withheld=withheld,
        left=(*_left(model), *_unread(folder, ranks)),
    )


@dataclass(frozen=True)
class _Model:
    """The model chunks of all ranks.

    Args:  chunks: by rank file.  shapes: one local shape for each name, as it is found.
    """

    ranks: Ranks
    chunks: Mapping[str, tuple[Chunk, ...]]
    vpp: int
    stacks: Mapping[str, Stack]
    tied: bool
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def of(ranks: Ranks) -> _Model:
        chunks = {rank.file: chunks_of(rank) for rank in ranks.files}
        vpp = max(len(items) for items in chunks.values())
        names = (
            (chunk.vpp * ranks.pp + chunk.rank.pp, name)
            for items in chunks.values()
            for chunk in items
            for name in chunk.tensors
        )
        return _Model(ranks, chunks, vpp, stacks_of(names, vpp * ranks.pp), is_tied(ranks))

    def global_names(self, chunks: Sequence[Chunk]) -> dict[tuple[int, str], str]:
        """What a rank's tensors are called over all ranks, by chunk and stored name."""
        return {
            (index, name): self._global_name(chunk, name)
            for index, chunk in enumerate(chunks)
            for name in chunk.tensors
        }

    def _global_name(self, chunk: Chunk, name: str) -> str:
        whole = known_name(name, self.tied)
        for prefix, stack in self.stacks.items():
            if whole.startswith(prefix):
                whole = shifted(whole, stack.first(chunk.vpp * self.ranks.pp + chunk.rank.pp))
                break
        experts = self.ranks.args.integer("num_experts") or 0
        head, mark, tail = whole.partition(_EXPERT)
        if not mark:
            return whole
        number, dot, rest = tail.partition(".")
        shift = chunk.rank.ep * (experts // self.ranks.ep)
        return f"{head}{mark}{int(number) + shift}{dot}{rest}"

    def pieces(self) -> dict[str, list[TensorRef]]:
        """By known name, what the tensor-parallel ranks of one stage hold of a tensor."""
        out: dict[str, dict[tuple[int, ...], dict[int, TensorRef]]] = {}
        for chunk in (chunk for items in self.chunks.values() for chunk in items):
            rank = chunk.rank
            for name, ref in chunk.tensors.items():
                expert = is_expert(name)
                place = (chunk.vpp, rank.pp, rank.ep if expert else 0)
                number = rank.tp % self.ranks.etp if expert else rank.tp
                places = out.setdefault(known_name(name, self.tied), {})
                places.setdefault(place, {}).setdefault(number, ref)
        return {name: list(next(iter(places.values())).values()) for name, places in out.items()}

    def in_order(self, tensor: LocalTensor, shape: tuple[int, ...]) -> LocalTensor:
        """A tensor with its rows as they count, where old checkpoints have another order.

        Args:  shape: as stored.
        """
        return in_order(tensor, shape, self.ranks.version, self.ranks.args)

    def names(self) -> Iterator[str]:
        """Global names of the weights."""
        for chunks in self.chunks.values():
            for (_, name), whole in self.global_names(chunks).items():
                if not name.endswith(EXTRA_STATE):
                    yield whole


def _weights(chunk: Chunk, model: _Model) -> Iterator[LocalTensor]:
    file = chunk.rank.file
    for name, stream in chunk.streams.items():
        bytes_ = Fragment(0, len(stream), file, 0, literal=stream)
        whole = f"{file}:{chunk.vpp}:{name}"
        yield LocalTensor(whole, EXTRA, (), (len(stream),), DType.U8, (bytes_,))
    for name, ref in chunk.tensors.items():
        if name.endswith(EXTRA_STATE):
            yield local_tensor(f"{file}:{chunk.vpp}:{name}", EXTRA, ref, file)
            continue
        shape = stored_shape(name, ref, model.ranks)
        model.shapes.setdefault(known_name(name, model.tied), shape)
        tensor = model.in_order(local_tensor(name, PARAM, ref, file, shape), ref.shape)
        for coord in coords_of(chunk, name, model.ranks, model.vpp):
            yield replace(tensor, coord=coord)


def _state(state: State, chunk: Chunk, model: _Model) -> Iterator[LocalTensor]:
    """An optimizer state, where its parameter is."""
    parameter, tensor = state
    if tensor.shape == () or tensor.state == STEP:
        tensor = replace(tensor, shape=())
    else:
        shape = stored_shape(tensor.name, parameter.ref, model.ranks)
        tensor = model.in_order(replace(tensor, shape=shape), parameter.ref.shape)
    for coord in coords_of(chunk, tensor.name, model.ranks, model.vpp):
        yield replace(tensor, coord=coord)


def _mesh(model: _Model) -> dict[str, int]:
    ranks = model.ranks
    mesh = {"vpp": model.vpp} if model.vpp > 1 else {}
    mesh |= {"pp": ranks.pp, "tp": ranks.tp, "ep": ranks.ep, "dp": ranks.args.size("dp")}
    if ranks.etp != ranks.tp and ranks.args.integer("num_experts"):
        mesh["etp"] = ranks.etp
    return mesh


def _aliases(model: _Model) -> dict[str, str] | None:
    names = {name for items in model.chunks.values() for c in items for name in c.tensors}
    copies = {copy: name for copy, name in tied_names().items() if copy in names}
    return copies if model.tied and copies else None


def _left(model: _Model) -> tuple[Left, ...]:
    """What the state dicts hold that is no tensor."""
    return tuple(
        Left(rank, f"model.{name}", f"it is no tensor but a `{kind}`")
        for rank, chunks in model.chunks.items()
        for chunk in chunks
        for name, kind in chunk.objects.items()
    )


def _unread(folder: Path, ranks: Ranks) -> Iterator[Left]:
    """What the files of the distributed optimizer hold beside its buffers."""
    for rank in ranks.files:
        file = Path(rank.file).with_name(DISTRIBUTED)
        if (folder / file).exists():
            yield from unread(open_torch_file(folder / file).root, str(file))


def _rows(model: _Model) -> int:
    """Rows of the embedding, over all ranks."""
    rows = next((s[0] for n, s in model.shapes.items() if n.endswith("word_embeddings.weight")), 0)
    return rows * model.ranks.tp


def _files(folder: Path, ranks: Ranks) -> tuple[SourceFile, ...]:
    out = []
    for rank in ranks.files:
        for file in (Path(rank.file), Path(rank.file).with_name(DISTRIBUTED)):
            path = folder / file
            if path.exists():
                stat = path.stat()
                out.append(SourceFile(str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(out)
