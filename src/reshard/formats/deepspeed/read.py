"""Reads the catalog of a DeepSpeed checkpoint."""

from __future__ import annotations

from pathlib import Path

from reshard.formats.deepspeed.ages import ages
from reshard.formats.deepspeed.collect import collect
from reshard.formats.deepspeed.describe import describe
from reshard.formats.deepspeed.detect import find_step
from reshard.formats.deepspeed.left import left_of
from reshard.formats.deepspeed.source import read_source
from reshard.formats.deepspeed.training import read_training
from reshard.language import load_layout
from reshard.plan.catalog import Catalog
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
    version = source.first.root.get("ds_version")
    return Catalog(
        NAME,
        "" if version is None else version.text(),
        str(root.resolve()),
        source.mesh,
        (*described.tensors, *keeper.tensors),
        load_layout(described.layout, "deepspeed layout"),
        training,
        aliases=found.aliases,
        buffers=tuple(found.buffers),
        frozen=tuple(found.frozen),
        files=source.files.seen,
        oddities=(*described.oddities, *oddities, *ages(source.files.seen)),
        withheld=found.withheld,
        left=left_of(source),
    )
