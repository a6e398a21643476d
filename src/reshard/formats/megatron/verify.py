"""Compares a Megatron checkpoint with the checksums of its own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reshard.formats.checked import Checked, checked
from reshard.plan.catalog import Catalog
from reshard.storage.checksums import Blob, check_blobs
from reshard.storage.dcp_metadata import metadata_files, read_metadata


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> Checked:
    """Check the torch files, and the blobs of a distributed checkpoint, which have checksums."""
    root = Path(catalog.root)
    blobs: list[Blob] = [(f.path, 0, None) for f in catalog.files if f.path.endswith(".pt")]
    blobs += read_metadata(root).blobs() if metadata_files(root) else []
    faults, covered = check_blobs(root, blobs, on_bytes)
    return checked(catalog, faults, covered)
