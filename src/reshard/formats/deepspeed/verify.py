"""Holds every byte of a DeepSpeed checkpoint against the checksums of its own files."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import Diagnostic, ReshardError
from reshard.plan.catalog import Catalog
from reshard.storage.torch_file import open_torch_file


def check_bytes(catalog: Catalog) -> tuple[Diagnostic, ...]:
    """What is not as it was saved, at most one message a file; () if nothing is.

    Each member of a torch file carries a crc32.
    """
    problems: list[Diagnostic] = []
    for file in catalog.files:
        path = Path(catalog.root) / file.path
        if path.suffix != ".pt":
            continue
        try:
            open_torch_file(path).check_all_crcs()
        except ReshardError as error:
            problems += error.diagnostics
    return tuple(problems)
