"""Torch files, and blobs in files that are such, held against the checksums of their members."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError
from reshard.storage.torch_file import open_torch_file

Blob = tuple[str, int, int | None]
"""A file, and where in it a torch file begins, with its bytes; None for all that follow."""


def check_blobs(
    root: Path, blobs: Iterable[Blob], on_bytes: Callable[[int], None]
) -> tuple[tuple[Diagnostic, ...], frozenset[str]]:
    """Hold blobs to their checksums: each member of a torch file carries a crc32.

    Args:  on_bytes: is told how many bytes more were read.
    Returns: what is not as it was saved, at most one message a file; the files of which each blob
             has checksums.
    """
    covered: dict[str, bool] = {}
    problems: dict[str, tuple[Diagnostic, ...]] = {}
    for file, byte_offset, nbytes in blobs:
        if file in problems:
            continue
        try:
            opened = open_torch_file(root / file, byte_offset, nbytes)
            covered[file] = opened.has_checksums and covered.get(file, True)
            opened.check_all_crcs(on_bytes)
        except ReshardError as error:
            problems[file] = error.diagnostics
    faults = tuple(item for problem in problems.values() for item in problem)
    return faults, frozenset(file for file, is_covered in covered.items() if is_covered)
