"""Holds a distributed checkpoint against the checksums of its own blobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reshard.formats.checked import Checked, checked
from reshard.formats.dcp.folders import find_step
from reshard.plan.catalog import Catalog
from reshard.storage.checksums import Blob, check_blobs
from reshard.storage.dcp_metadata import read_metadata


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> Checked:
    """Hold each blob to its checksums.

    Each blob is a torch file; bytes that are stored without one (ByteCheckpoint) are not checked.
    """
    root = Path(catalog.root)
    blobs: list[Blob] = []
    raw: set[str] = set()
    for part in find_step(root, None).parts:
        metadata = read_metadata(part.path, shown=part.shown)
        chunks = (chunk for stored in metadata.tensors for chunk in stored.chunks)
        raw |= {chunk.file for chunk in chunks if chunk.tensor is not None}
        blobs += metadata.blobs()
    faults, covered = check_blobs(root, blobs, on_bytes)
    return checked(catalog, faults, covered - raw)
