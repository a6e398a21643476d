"""Reads a distributed checkpoint: every chunk becomes a box of its tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reshard.formats.dcp.collect import Collected, collect
from reshard.formats.dcp.folders import find_step
from reshard.formats.dcp.olmo_config import read_olmo_config
from reshard.formats.dcp.side_files import read_side_files, stale_files
from reshard.formats.dcp.training import read_training, unlike_states
from reshard.formats.model_json import model_config_of
from reshard.plan.catalog import Catalog
from reshard.storage.dcp_chunks import ChunkReader

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout dcp {
    "**" = [...] optional
}
"""


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a distributed checkpoint.

    Args:  path: the folder with `.metadata`; one with accelerate's, OLMo-core's, or
           ByteCheckpoint's folders; or that of a run, with folders of several steps.
           step: which of these; the last whole one by default.
    Raises: ReshardError[incomplete-dcp | unknown-step | several-models | bad-metadata |
            missing-chunk | missing-file | chunk-mismatch | unsupported-dcp |
            ambiguous-optimizer-ids | source-unreadable | truncated].
    """
    folder = find_step(path, step)
    chunks = ChunkReader(folder.root)
    found: Collected = collect(folder, chunks, model_config_of(folder.root / "config.json"))
    chunks.refuse_overlaps()
    files = read_side_files(folder)
    withheld = (replace(item, level="warning") for item in found.withheld)
    stale = stale_files(folder, chunks)
    return Catalog(
        format="dcp",
        version=found.version,
        root=str(folder.root.resolve()),
        mesh={"copy": found.copies} if found.copies > 1 else {},
        tensors=found.listed_tensors(),
        layout=LAYOUT,
        layout_name="dcp",
        training=read_training(folder, found, files),
        config=read_olmo_config(folder.root),
        aliases=found.aliases or None,
        buffers=found.buffers,
        frozen=found.frozen,
        files=tuple(chunks.files.values()),
        oddities=(*folder.oddities, *stale, *unlike_states(found), *withheld),
        withheld=found.withheld,
    )
