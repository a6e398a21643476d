"""Reads a Megatron checkpoint of any form."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from reshard.formats.megatron.detect import find_folder, is_dist, is_plain
from reshard.formats.megatron.read_dist import read_dist, read_fsdp
from reshard.formats.megatron.read_legacy import read_legacy
from reshard.plan.catalog import Catalog


def read(
    path: Path,
    *,
    step: str | None = None,
    strict_layout: bool = True,
    excluded: Collection[str] = (),
) -> Catalog:
    """The catalog of a checkpoint.

    Args:  path: the folder with the tracker file, or that of one iteration.
           step: a number of an iteration, or a folder's name.
           strict_layout: whether the checkpoint must describe itself.
           excluded: names, with `*` in them, of what is not wanted.
    Raises: what `find_folder`, `read_legacy`, and `read_dist` raise.
    """
    folder = find_folder(path, step)
    if is_dist(folder):
        return read_dist(folder)
    if is_plain(folder):
        return read_fsdp(folder)
    return read_legacy(folder, strict=strict_layout, excluded=excluded)
