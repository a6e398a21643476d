"""Holds every byte of a DeepSpeed checkpoint against the checksums of its own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.plan.catalog import Catalog
from reshard.storage.checksums import check_blobs


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> tuple[Diagnostic, ...]:
    """What is not as it was saved, at most one message a file; () if nothing is."""
    blobs = [(file.path, 0, None) for file in catalog.files if file.path.endswith(".pt")]
    return check_blobs(Path(catalog.root), blobs, on_bytes)
