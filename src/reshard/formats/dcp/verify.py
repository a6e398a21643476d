"""Holds every byte of a distributed checkpoint against the checksums of its own blobs."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import Diagnostic, ReshardError
from reshard.formats.dcp.folders import find_step
from reshard.plan.catalog import Catalog
from reshard.storage.dcp_metadata import read_metadata
from reshard.storage.torch_file import open_torch_file


def check_bytes(catalog: Catalog) -> tuple[Diagnostic, ...]:
    """What is not as it was saved, at most one message a file; () if nothing is.

    Each blob is a zip file whose members carry a crc32; bytes that are stored without one
    (ByteCheckpoint) are not checked.
    """
    problems: dict[str, tuple[Diagnostic, ...]] = {}
    for part in find_step(Path(catalog.root), None).parts:
        metadata = read_metadata(part.path, shown=part.shown)
        chunks = (chunk for stored in metadata.tensors for chunk in stored.chunks)
        blobs = [
            *((c.file, c.byte_offset, c.nbytes) for c in chunks if c.tensor is None),
            *((item.file, item.byte_offset, item.nbytes) for item in metadata.objects),
        ]
        for file, byte_offset, nbytes in sorted(blobs):
            if file in problems:
                continue
            try:
                path = Path(catalog.root) / file
                open_torch_file(path, byte_offset, nbytes).check_all_crcs()
            except ReshardError as error:
                problems[file] = error.diagnostics
    return tuple(item for found in problems.values() for item in found)
