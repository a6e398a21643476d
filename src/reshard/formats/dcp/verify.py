"""Holds every byte of a distributed checkpoint against the checksums of its own blobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.formats.dcp.folders import find_step
from reshard.plan.catalog import Catalog
from reshard.storage.checksums import Blob, check_blobs
from reshard.storage.dcp_metadata import read_metadata


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> tuple[Diagnostic, ...]:
    """What is not as it was saved, at most one message a file; () if nothing is.

    Each blob is a torch file; bytes that are stored without one (ByteCheckpoint) are not checked.
    """
    root = Path(catalog.root)
    blobs: list[Blob] = []
    for part in find_step(root, None).parts:
        metadata = read_metadata(part.path, shown=part.shown)
        chunks = (chunk for stored in metadata.tensors for chunk in stored.chunks)
        found = [(c.file, c.byte_offset, c.nbytes) for c in chunks if c.tensor is None]
        found += [(item.file, item.byte_offset, item.nbytes) for item in metadata.objects]
        blobs += sorted(found)
    return check_blobs(root, blobs, on_bytes)
