"""Holds a Megatron checkpoint against the checksums of its own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reshard.formats.checked import Checked, checked
from reshard.plan.catalog import Catalog
from reshard.storage.checksums import Blob, check_blobs
from reshard.storage.dcp_metadata import metadata_files, read_metadata


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> Checked:
    """Hold each file to its checksums.

    Torch files, and the blobs of a distributed checkpoint, have checksums.
    """
    root = Path(catalog.root)
    whole = [(file.path, 0, None) for file in catalog.files if file.path.endswith(".pt")]
    faults, covered = check_blobs(root, [*whole, *_blobs(root)], on_bytes)
    return checked(catalog, faults, covered)


def _blobs(root: Path) -> list[Blob]:
    """Where the zip files of a distributed checkpoint begin, and their lengths."""
    if not metadata_files(root):
        return []
    metadata = read_metadata(root)
    chunks = (chunk for tensor in metadata.tensors for chunk in tensor.chunks)
    blobs: list[Blob] = [(c.file, c.byte_offset, c.nbytes) for c in chunks if c.tensor is None]
    blobs += [(item.file, item.byte_offset, item.nbytes) for item in metadata.objects]
    return [*sorted(blobs)]
