"""Holds every byte of a Megatron checkpoint against the checksums of its own files."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import Diagnostic, ReshardError
from reshard.plan.catalog import Catalog
from reshard.storage.dcp_metadata import metadata_files, read_metadata
from reshard.storage.torch_file import open_torch_file


def check_bytes(catalog: Catalog) -> tuple[Diagnostic, ...]:
    """What is not as it was saved, at most one message a file; () if nothing is.

    Each member of a torch file, and of each blob of a distributed one, carries a crc32.
    """
    root = Path(catalog.root)
    whole = [(file.path, 0, None) for file in catalog.files if file.path.endswith(".pt")]
    wanted: list[tuple[str, int, int | None]] = [*whole, *_blobs(root)]
    problems: dict[str, tuple[Diagnostic, ...]] = {}
    for file, byte_offset, nbytes in wanted:
        if file in problems:
            continue
        try:
            open_torch_file(root / file, byte_offset, nbytes).check_all_crcs()
        except ReshardError as error:
            problems[file] = error.diagnostics
    return tuple(item for found in problems.values() for item in found)


def _blobs(root: Path) -> list[tuple[str, int, int | None]]:
    """Where the zip files of a distributed checkpoint begin, and their lengths."""
    if not metadata_files(root):
        return []
    metadata = read_metadata(root)
    chunks = (chunk for stored in metadata.tensors for chunk in stored.chunks)
    found = [(c.file, c.byte_offset, c.nbytes) for c in chunks if c.tensor is None]
    found += [(item.file, item.byte_offset, item.nbytes) for item in metadata.objects]
    return [*sorted(found)]
