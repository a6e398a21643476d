"""Reads the catalog of a DeepSpeed checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from reshard.errors import Diagnostic, warning
from reshard.formats.deepspeed.collect import collect
from reshard.formats.deepspeed.describe import describe
from reshard.formats.deepspeed.files import find_step
from reshard.formats.deepspeed.model_file import differing, without
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
    collected = collect(source)
    described = describe(source, collected, strict=strict_layout)
    keeper = Keeper()
    training, oddities = read_training(source, collected, keeper)
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
        aliases=collected.aliases,
        buffers=tuple(collected.buffers),
        frozen=tuple(collected.frozen),
        files=source.files.seen,
        oddities=(*described.oddities, *oddities, *padding, *_ages(source.files.seen)),
        withheld=collected.withheld,
        left=(*source.files.left, *_left(source)),
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
        warning(
            "files-apart",
            f"{younger.path} is {apart // _HOUR_NS} hours younger than {older.path}",
            "model files and optimizer files of one save are written together",
            helps=("make sure that they are of one step; copying can change the times, too",),
        ),
    )


# What no reader has a use for, with the reason.

_OPTIMIZER_FILE = ("optimizer_state_dict", "ds_config", "ds_version")
_UNKNOWN = "DeepSpeed is not known to read it"


def _left(source: Source) -> Iterator[Left]:
    for model in source.models.values():
        sizes = model.root.get("checkpoint_parallel_dimensions")
        yield from _others(sizes, ("pp_degree", "tp_degree"), _UNKNOWN)
        fragments = model.root.get("frozen_param_fragments")
        known = tuple(model.frozen_shapes)
        yield from _others(fragments, known, "`frozen_param_shapes` does not name it")
    for shard in source.shards.values():
        yield from _others(shard.root, _OPTIMIZER_FILE, _UNKNOWN)
        yield from _other_settings(source.first.root, shard.root)
        base = base_of(shard.optimizer)
        yield from _others(base, ("state", "param_groups"), "no optimizer of torch writes it")
        yield from _of_no_group(base)
    for plain in source.plain.values():
        yield from _of_no_group(plain.inner)


def _others(node: Node | None, known: Iterable[str], why: str) -> Iterator[Left]:
    """The entries of a dict that are not known."""
    if node is not None and node.is_dict:
        for item in without(node, set(known)).values():
            yield Left(item.file, item.path, why)


def _other_settings(first: Node, root: Node) -> Iterator[Left]:
    """What an optimizer's file says of the configuration otherwise than the model's file."""
    here, there = root.get("ds_config"), first.get("ds_config")
    if here is None:
        return
    if not here.is_dict:  # the path of a file
        others = [here] if there is None or here.value != there.value else []
    else:
        known = dict(there.entries()) if there is not None and there.is_dict else {}
        stated = dict(here.entries())
        others = [stated[key] for key in differing(known, stated) if key in stated]
    for node in others:
        yield Left(node.file, node.path, f"the configuration in {first.file} is used")


def _of_no_group(base: Node | None) -> Iterator[Left]:
    """States in an optimizer's own state dict whose numbers no group has."""
    state, groups = (None, None) if base is None else (base.get("state"), base.get("param_groups"))
    if groups is None:
        return
    params = [group.get("params") for group in groups.items()]
    numbers = {f"{number}" for node in params if node is not None for number in node.sequence()}
    yield from _others(state, numbers, "it is the state of a parameter in no group")
