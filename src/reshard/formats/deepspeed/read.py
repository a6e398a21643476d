"""Reads the catalog of a DeepSpeed checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.formats.deepspeed.collect import collect
from reshard.formats.deepspeed.describe import describe
from reshard.formats.deepspeed.files import find_step
from reshard.formats.deepspeed.model_file import ModelFile, differing, without
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.optimizer_file import base_of
from reshard.formats.deepspeed.source import Source, read_source
from reshard.formats.deepspeed.training import read_training, run_config
from reshard.language import load_layout
from reshard.plan.catalog import Catalog, Left, SourceFile
from reshard.storage.kept import Keeper

NAME = "deepspeed"


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of one step of a DeepSpeed checkpoint; no large tensor is read.

    Args:  path: a step's folder, or the folder that holds several and `latest`.
           step: which of several.  strict_layout: whether every parameter must be described by the
           checkpoint itself; without, the layout is only a draft for the user's own.
    Raises: ReshardError, see docs/formats/deepspeed.md.
    """
    root = find_step(path, step)
    source = read_source(root)
    found = collect(source)
    described = describe(source, found, strict=strict_layout)
    keeper = Keeper()
    training, oddities = read_training(source, found, keeper)
    config, padding = run_config(source.first.root)
    version = source.first.root.get("ds_version")
    return Catalog(
        NAME,
        "" if version is None else version.text(),
        str(root.resolve()),
        source.mesh,
        (*described.tensors, *keeper.tensors),
        load_layout(described.layout, "deepspeed layout"),
        training,
        config=config,
        aliases=found.aliases,
        buffers=tuple(found.buffers),
        frozen=tuple(found.frozen),
        files=source.files.seen,
        oddities=(*described.oddities, *oddities, *padding, *_ages(source.files.seen)),
        withheld=found.withheld,
        left=_left_of(source),
    )


_HOUR_NS = 3_600_000_000_000
"""Files of one save are not further apart than this, unless they were copied apart."""


def _ages(files: Sequence[SourceFile]) -> tuple[Diagnostic, ...]:
    """A warning if files of one kind are much younger than those of the other."""
    models = [file for file in files if file.path.endswith("model_states.pt")]
    optimizers = [file for file in files if file.path.endswith("optim_states.pt")]
    if not models or not optimizers:
        return ()
    kinds = sorted((models, optimizers), key=lambda kind: min(file.mtime_ns for file in kind))
    older = max(kinds[0], key=lambda file: file.mtime_ns)
    younger = min(kinds[1], key=lambda file: file.mtime_ns)
    apart = younger.mtime_ns - older.mtime_ns
    if apart < _HOUR_NS:
        return ()
    return (
        Diagnostic(
            "files-apart",
            f"{younger.path} is {apart // _HOUR_NS} hours younger than {older.path}",
            level="warning",
            notes=("model files and optimizer files of one save are written together",),
            helps=("make sure that they are of one step; copying can change the times, too",),
        ),
    )


_OPTIMIZER_FILE = ("optimizer_state_dict", "ds_config", "ds_version")
_DIMENSIONS = ("pp_degree", "tp_degree")
_UNKNOWN = "DeepSpeed is not known to read it"


def _left_of(source: Source) -> tuple[Left, ...]:
    """Everything that a reader passed over, with the reason."""
    out = list(source.files.left)
    for model in source.models.values():
        out += _of_model(model)
    for shard in source.shards.values():
        out += _others(shard.root, _OPTIMIZER_FILE, _UNKNOWN)
        out += _settings(source.first.root, shard.root)
        base = base_of(shard.optimizer)
        if base is not None:
            out += _of_base(base)
    for plain in source.plain.values():
        out += _of_base(plain.inner, known=tuple(key for key, _ in plain.inner.entries()))
    return tuple(out)


def _of_model(model: ModelFile) -> Iterator[Left]:
    sizes = model.root.get("checkpoint_parallel_dimensions")
    if sizes is not None and isinstance(sizes.value, dict):
        yield from _others(sizes, _DIMENSIONS, _UNKNOWN)
    frozen = model.root.get("frozen_param_fragments")
    if frozen is not None and isinstance(frozen.value, dict):
        shapes = tuple(model.frozen_shapes)
        yield from _others(frozen, shapes, "`frozen_param_shapes` does not name it")


def _settings(first: Node, own: Node) -> Iterator[Left]:
    """What an optimizer's file says of the configuration otherwise than the model's file."""
    here, there = own.get("ds_config"), first.get("ds_config")
    if here is None:
        return
    if not isinstance(here.value, dict):  # the path of a file
        if there is None or here.value != there.value:
            yield _left(here, f"{first.file} says otherwise, and is believed")
        return
    known = {} if there is None or not isinstance(there.value, dict) else dict(there.entries())
    stated = dict(here.entries())
    for key in differing(known, stated):
        if key in stated:
            yield _left(stated[key], f"{first.file} says otherwise, and is believed")


def _of_base(base: Node, known: Iterable[str] = ("state", "param_groups")) -> Iterator[Left]:
    """Entries of an optimizer's own state dict."""
    yield from _others(base, known, "no optimizer of torch writes it")
    state, groups = base.get("state"), base.get("param_groups")
    if state is None or groups is None or not isinstance(state.value, dict):
        return
    numbers = {
        str(number)
        for group in groups.items()
        for params in [group.get("params")]
        if params is not None
        for number in params.sequence()
    }
    yield from _others(state, numbers, "it is the state of a parameter in no group")


def _others(node: Node, known: Iterable[str], why: str) -> Iterator[Left]:
    for item in without(node, set(known)).values():
        yield _left(item, why)


def _left(node: Node, why: str) -> Left:
    return Left(node.file, node.path, why)
