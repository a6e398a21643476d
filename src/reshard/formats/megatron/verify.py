"""Holds every byte of a Megatron checkpoint against the checksums of its own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.plan.catalog import Catalog
from reshard.storage.checksums import Blob, check_blobs
from reshard.storage.dcp_metadata import metadata_files, read_metadata


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> tuple[Diagnostic, ...]:
    """What is not as it was saved, at most one message a file; () if nothing is.

    Torch files, and the blobs of a distributed checkpoint, have checksums.
    """
    root = Path(catalog.root)
    whole = [(file.path, 0, None) for file in catalog.files if file.path.endswith(".pt")]
    return check_blobs(root, [*whole, *_blobs(root)], on_bytes)


def _blobs(root: Path) -> list[Blob]:
    """Where the zip files of a distributed checkpoint begin, and their lengths."""
    if not metadata_files(root):
        return []
    metadata = read_metadata(root)
    chunks = (chunk for stored in metadata.tensors for chunk in stored.chunks)
    found: list[Blob] = [(c.file, c.byte_offset, c.nbytes) for c in chunks if c.tensor is None]
    found += [(item.file, item.byte_offset, item.nbytes) for item in metadata.objects]
    return [*sorted(found)]
