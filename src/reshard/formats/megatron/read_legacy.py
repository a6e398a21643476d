"""Reads a legacy `torch` checkpoint: the model of all ranks, and its layout as UCL."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.formats.megatron.catalog import Contents
from reshard.formats.megatron.groups import Groups
from reshard.formats.megatron.legacy import (
    Chunk,
    as_counted,
    chunks_of,
    coords_of,
    is_tied,
    known_name,
)
from reshard.formats.megatron.legacy_states import State, states_of, unread_of
from reshard.formats.megatron.modules import EXTRA_STATE, Modules, is_expert, tied_names
from reshard.formats.megatron.names import Stack, expert_of, layer_of, rule_lines, stacks_of
from reshard.formats.megatron.ranks import DISTRIBUTED, Ranks, read_ranks
from reshard.models.run_arguments import Arguments
from reshard.plan.catalog import Catalog, Fragment, Left, LocalTensor, SourceFile
from reshard.plan.names import group_names, name_pattern, quantity
from reshard.run.states import EXTRA, STEP
from reshard.storage.torch_file import open_torch_file
from reshard.store.source import LocalSource
from reshard.store.source_files import SourceFiles


def read_legacy(folder: Path, *, strict: bool = True, excluded: Collection[str] = ()) -> Catalog:
    """The catalog of an iteration's folder with `mp_rank_*`.

    Args:  strict: whether the checkpoint must describe itself.
           excluded: names, with `*` in them, of what the optimizer may not have.
    Raises: ReshardError[foreign-rank | missing-ranks | mixed-runs | no-arguments | no-model |
            uncovered-parameter | unsupported-expert-tp | glu-mismatch | interleaved-glu |
            fused-rows], and what `open_torch_file` raises. What is wrong with the optimizer alone
            is kept in the catalog.
    """
    with SourceFiles(folder) as files:
        return _read(read_ranks(folder, strict=strict), files, strict=strict, excluded=excluded)


def _read(ranks: Ranks, files: SourceFiles, *, strict: bool, excluded: Collection[str]) -> Catalog:
    args, model = ranks.args, _Model(ranks)
    tensors = [t for chunks in model.chunks.values() for c in chunks for t in model.weights(c)]
    cut = {"tp": ranks.tp, "etp": ranks.etp}
    modules = Modules(model.shapes, args, cut, model.pieces(), files, strict=strict)
    shapes = model.shapes.items()
    rows = next((s[0] for n, s in shapes if n.endswith("word_embeddings.weight")), 0) * ranks.tp
    root, names = ranks.files[0].root, [*model.names()]
    contents = Contents(files.root, "torch", root, args, tensors, rows=rows, names=names)

    def optimizer() -> tuple[list[LocalTensor], Groups]:
        states: list[LocalTensor] = []
        groups = Groups()
        for rank in ranks.files:
            chunks = model.chunks[rank.file]
            try:
                of_rank, members = states_of(rank, chunks, ranks, files)
            except ReshardError as error:
                if not excluded or error.diagnostics[0].code != "ambiguous-optimizer-ids":
                    raise
                fewer = [model.without(chunk, excluded) for chunk in chunks]
                of_rank, members = states_of(rank, fewer, ranks, files)
            states += [t for state in of_rank for t in model.state(state, chunks)]
            for group in members:
                names = (model.global_name(chunks[p.chunk], p.name) for p in group.parameters)
                groups.add(group.group, [*names])
        return states, groups

    contents.read_optimizer(optimizer)
    mesh = {"vpp": model.vpp} if model.vpp > 1 else {}
    mesh |= {"pp": ranks.pp, "tp": ranks.tp, "ep": ranks.ep, "dp": args.size("dp")}
    if ranks.etp != ranks.tp and args.integer("num_experts"):
        mesh["etp"] = ranks.etp
    read: list[SourceFile] = []
    unread = [*model.unread()]
    for rank in ranks.files:
        read.append(_file(files.root, rank.file))
        name = f"{rank.folder}/{DISTRIBUTED}"
        if LocalSource(files.root).has(name):
            read.append(_file(files.root, name))
            unread += unread_of(open_torch_file(files.root / name).root, name)
    vocabulary, vpp = contents.vocabulary, model.vpp
    return contents.catalog(
        layout_text(model.shapes, ranks, model.stacks, vpp, modules, vocabulary, strict=strict),
        read,
        mesh=mesh,
        rng=[file.root.get("rng_state") for file in ranks.files],
        version=str(ranks.version),
        aliases=model.aliases(),
        unread=unread,
    )


def _file(root: Path, name: str) -> SourceFile:
    """A file as it is now; the folder of a rank may be a link that leads elsewhere."""
    status = (root / name).stat()
    return SourceFile(name, status.st_size, status.st_mtime_ns)


class _Model:
    """The model chunks of all ranks.

    Attributes:  chunks: by rank file.  shapes: one local shape for each name, once it is read.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._tied = is_tied(ranks)
        self.chunks = {rank.file: chunks_of(rank) for rank in ranks.files}
        self.vpp = max(len(items) for items in self.chunks.values())
        self.shapes: dict[str, tuple[int, ...]] = {}
        names = ((self._stage(chunk), name) for chunk in self._all() for name in chunk.tensors)
        self.stacks = stacks_of(names, self.vpp * ranks.pp)

    def _all(self) -> Iterator[Chunk]:
        for chunks in self.chunks.values():
            yield from chunks

    def _stage(self, chunk: Chunk) -> int:
        """The number of a chunk, in the order of its layers."""
        return chunk.vpp * self._ranks.pp + chunk.rank.pp

    def without(self, chunk: Chunk, patterns: Collection[str]) -> Chunk:
        """A chunk without the parameters whose names follow one of the patterns."""
        wanted = {
            name: item
            for name, item in chunk.tensors.items()
            if not any(
                name_pattern(text).fullmatch(self.global_name(chunk, name)) for text in patterns
            )
        }
        return replace(chunk, tensors=wanted)

    def global_name(self, chunk: Chunk, name: str) -> str:
        """What a rank's tensor is called over all ranks."""
        whole = known_name(name, self._tied)
        layer = layer_of(whole)
        if layer is not None:
            prefix, number, rest = layer
            before = sum(self.stacks[prefix].counts[: self._stage(chunk)])
            whole = f"{prefix}{number + before}{rest}"
        expert = expert_of(whole)
        if expert is not None:
            head, number, tail = expert
            count = (self._ranks.args.integer("num_experts") or 0) // self._ranks.ep
            whole = f"{head}{number + chunk.rank.ep * count}{tail}"
        return whole

    def names(self) -> Iterator[str]:
        """Global names of the weights."""
        for chunk in self._all():
            for name in chunk.tensors:
                if not name.endswith(EXTRA_STATE):
                    yield self.global_name(chunk, name)

    def pieces(self) -> dict[str, list[LocalTensor]]:
        """By known name, what the tensor-parallel ranks of one stage hold of a tensor."""
        out: dict[str, dict[tuple[int, ...], dict[int, LocalTensor]]] = {}
        for chunk in self._all():
            rank = chunk.rank
            for name, tensor in chunk.tensors.items():
                expert = is_expert(name)
                place = (chunk.vpp, rank.pp, rank.ep if expert else 0)
                number = rank.tp % self._ranks.etp if expert else rank.tp
                places = out.setdefault(known_name(name, self._tied), {})
                places.setdefault(place, {}).setdefault(number, tensor)
        return {name: list(next(iter(places.values())).values()) for name, places in out.items()}

    def weights(self, chunk: Chunk) -> Iterator[LocalTensor]:
        """The tensors of a chunk, where it has them."""
        file = chunk.rank.file
        for name, stream in chunk.streams.items():
            run = (Fragment(0, len(stream), file, 0, literal=stream),)
            whole = f"{file}:{chunk.vpp}:{name}"
            yield LocalTensor(whole, EXTRA, (), (len(stream),), DType.U8, run)
        for name, weight in chunk.tensors.items():
            if name.endswith(EXTRA_STATE):
                yield replace(weight, name=f"{file}:{chunk.vpp}:{name}", state=EXTRA)
                continue
            tensor = as_counted(weight, weight, self._ranks)
            self.shapes.setdefault(known_name(name, self._tied), tensor.shape)
            yield from self._at_coords(tensor, chunk)

    def state(self, state: State, chunks: Sequence[Chunk]) -> Iterator[LocalTensor]:
        """An optimizer state, where its parameter is."""
        parameter, tensor = state
        if tensor.shape == () or tensor.state == STEP:
            tensor = replace(tensor, shape=())
        else:
            tensor = as_counted(tensor, parameter.weight, self._ranks)
        yield from self._at_coords(tensor, chunks[parameter.chunk])

    def _at_coords(self, tensor: LocalTensor, chunk: Chunk) -> Iterator[LocalTensor]:
        for coord in coords_of(chunk, tensor.name, self._ranks, self.vpp):
            yield replace(tensor, coord=coord)

    def aliases(self) -> Mapping[str, str] | None:
        """The copies of tied embeddings that are stored."""
        names = {name for chunk in self._all() for name in chunk.tensors}
        copies = {copy: name for copy, name in tied_names().items() if copy in names}
        return copies if self._tied and copies else None

    def unread(self) -> Iterator[Left]:
        """What the state dicts hold that is no tensor."""
        for chunk in self._all():
            for name, kind in chunk.objects.items():
                yield Left(chunk.rank.file, f"model.{name}", f"it is no tensor but a `{kind}`")


_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def layout_text(
    names: Iterable[str],
    ranks: Ranks,
    stacks: Mapping[str, Stack],
    vpp: int,
    modules: Modules,
    vocabulary: int | None,
    *,
    strict: bool = True,
) -> str:
    """The layout of a legacy checkpoint, without a model.

    Args:  names: as stored.  vocabulary: its true size, if it is known.
           strict: whether every name must be known; else what is not is taken for a copy.
    Raises: ReshardError[uncovered-parameter] when a name is not known, and tp or ep > 1.
    """
    staged = ranks.pp * vpp > 1
    rules: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        dims = modules.dims(name, vocabulary)
        if dims is None and ranks.tp * ranks.ep > 1:
            unknown.append(name)
        rules.setdefault(_pattern(name, stacks, staged), f"[{dims or '...'}]")
    if unknown and strict:
        raise _uncovered(unknown, ranks.args)
    mesh = ["vpp"] * (vpp > 1) + ["pp", "tp", "ep"]
    mesh += ["etp"] * ("etp" in "".join(rules.values())) + ["dp"]
    over = "vpp, pp" if vpp > 1 else "pp"
    places = [
        f"    place {stack.axis} over {over} as {', '.join(map(str, stack.counts))}"
        for stack in stacks.values()
    ]
    return "\n".join(
        [
            "# Read from the checkpoint's arguments and names.",
            "layout megatron {",
            f"    mesh {', '.join(mesh)}",
            *(places if staged else ()),
            "",
            *rule_lines(rules),
            "}",
            "",
        ]
    )


def _pattern(name: str, stacks: Mapping[str, Stack], staged: bool) -> str:
    """A name as a pattern: layers counted on their stage, experts on their rank."""
    layer = layer_of(name)
    if layer is not None:
        prefix, _, rest = layer
        local = "local " if staged else ""
        name = f"{prefix}{{{local}{stacks[prefix].axis}}}{rest}"
    expert = expert_of(name)
    if expert is not None:
        head, _, tail = expert
        name = f"{head}{{local e over ep}}{tail}"
    return _INDEX.sub("*", name)


def _uncovered(names: Iterable[str], args: Arguments) -> ReshardError:
    groups = group_names(list(names))
    return ReshardError(
        [
            Diagnostic(
                "uncovered-parameter",
                f"how `{group}`{quantity(count)} is cut over tp is not known",
                notes=(f"the run had tp={args.size('tp')}, ep={args.size('ep')}",),
                helps=("say it in a layout of your own, and give it with `--layout FILE`",),
            )
            for group, count in groups
        ],
        Exit.LAYOUT,
    )
