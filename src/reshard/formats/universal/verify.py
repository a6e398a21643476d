"""Holds every byte of a universal checkpoint against the digests in its manifest."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.formats.checked import Checked, tensor_files
from reshard.formats.universal.check_files import AGAIN, file_problems
from reshard.formats.universal.manifest import Manifest
from reshard.formats.universal.read_manifest import read_manifest
from reshard.plan.catalog import Catalog
from reshard.storage.safetensors_library import library_faults
from reshard.store.digest import digest_file_range
from reshard.store.regular_file import unreadable

THREADS = 4


@dataclass(frozen=True, slots=True)
class DigestedRange:
    """A range of a file and what its digest must be.

    Args:  what: for messages, a tensor with its state or a file's part.
           byte_offset: absolute.
    """

    what: str
    file: str
    byte_offset: int
    nbytes: int
    digest: str


def digests(manifest: Manifest) -> tuple[DigestedRange, ...]:
    """Ranges that together are all bytes of the files that a manifest lists, in file order."""
    ranges = [
        DigestedRange(f"`{item.path}`", item.path, 0, item.nbytes, item.digest)
        if item.head_nbytes is None
        else DigestedRange(
            f"the header of `{item.path}`", item.path, 0, item.head_nbytes, item.digest
        )
        for item in manifest.files
    ]
    ranges += [
        DigestedRange(
            f"`{item.name}` ({item.state})", item.file, item.byte_offset, item.nbytes, item.digest
        )
        for item in manifest.tensors
    ]
    return tuple(sorted(ranges, key=lambda item: (item.file, item.byte_offset, item.nbytes)))


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> Checked:
    """Hold every byte of a universal source against its manifest."""
    root = Path(catalog.root)
    holding = tensor_files(catalog)
    faults = verify_files(root, on_bytes)
    if not faults:
        faults = tuple(fault for name in holding for fault in library_faults(root / name))
    return Checked(faults, len(holding), is_whole=True)


def verify_files(
    path: Path, on_bytes: Callable[[int], None] | None = None
) -> tuple[Diagnostic, ...]:
    """Everything in a folder that is not as it was written; () if nothing is.

    Args:  on_bytes: is told how many bytes more were read.
    Raises: ReshardError[incomplete-universal | bad-manifest | newer-universal | changed-file] when
            the manifest itself cannot be trusted.
    """
    manifest = read_manifest(path)
    broken = file_problems(path, manifest)
    problems = [item for faults in broken.values() for item in faults]
    todo = [item for item in digests(manifest) if item.file not in broken]
    with ThreadPoolExecutor(THREADS) as pool:
        for item, problem in zip(
            todo, pool.map(lambda expected: _check(path, expected), todo), strict=True
        ):
            if problem is not None:
                problems.append(problem)
            if on_bytes is not None:
                on_bytes(item.nbytes)
    return tuple(problems)


def _check(path: Path, expected: DigestedRange) -> Diagnostic | None:
    try:
        digest = digest_file_range(path / expected.file, expected.byte_offset, expected.nbytes)
    except OSError as error:
        return unreadable(path / expected.file, error).diagnostics[0]
    if digest == expected.digest:
        return None
    stop = expected.byte_offset + expected.nbytes
    return Diagnostic(
        "digest-mismatch",
        f"{expected.what} is not what was written",
        notes=(
            f"bytes {expected.byte_offset} to {stop} of {path / expected.file}",
            f"their digest is {digest}, the manifest says {expected.digest}",
        ),
        helps=AGAIN,
    )
