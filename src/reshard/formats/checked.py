"""What a source says of its own bytes, and whether they are so."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import Diagnostic
from reshard.plan.catalog import Catalog
from reshard.storage.checksums import check_blobs
from reshard.storage.safetensors_library import library_faults
from reshard.store.source import LocalSource

_SAFETENSORS = ".safetensors"
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome of a check.

    Args:  faults: everything that differs.
           holding: number of files with tensors.
           unchecked: those of them with bytes of tensors that no checksum covers.
           is_whole: whether one list has a digest of every byte of the checkpoint, so that a file
                     of another save would be noticed too.
           warnings: what was noticed besides.
    """

    faults: tuple[Diagnostic, ...]
    holding: int
    unchecked: tuple[str, ...] = ()
    is_whole: bool = False
    warnings: tuple[Diagnostic, ...] = ()


def tensor_files(catalog: Catalog) -> tuple[str, ...]:
    """The files that hold the tensors of a source."""
    return tuple(
        dict.fromkeys(
            part.file
            for tensor in catalog.tensors
            for part in tensor.fragments
            if part.literal is None
        )
    )


def checked(catalog: Catalog, faults: tuple[Diagnostic, ...], covered: Collection[str]) -> Checked:
    """The outcome of a check of single files.

    Args:  covered: files whose tensors all have checksums.
    """
    holding = tensor_files(catalog)
    unchecked = tuple(file for file in holding if file not in covered)
    return Checked(faults, len(holding), unchecked)


def check_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> Checked:
    """Check each file of a source by itself.

    Files of `torch.save` have a crc32 of each member. Safetensors files have no checksum; the
    safetensors library opens them, as a loader will.

    Args:  on_bytes: is told how many bytes more were read.
    """
    root = Path(catalog.root)
    source = LocalSource(root)
    holding = {*tensor_files(catalog)}
    side_names = {*catalog.side_files.values()}
    faults: list[Diagnostic] = []
    read: list[str] = []
    side_files: list[str] = []
    for name in (file.path for file in catalog.files):
        if name.endswith(_SAFETENSORS):
            faults += library_faults(root / name)
        elif name in side_names:
            side_files += [name] if name.endswith(_TORCH) and _is_zip(source, name) else []
        elif name.endswith(_TORCH) or (name in holding and _is_zip(source, name)):
            read.append(name)
    faults_of_files, covered = check_blobs(root, [(name, 0, None) for name in read], on_bytes)
    others, _ = check_blobs(root, [(name, 0, None) for name in side_files], on_bytes)
    faults += [*faults_of_files, *(item for item in others if item.code != "not-a-torch-file")]
    return checked(catalog, tuple(faults), covered)


def _is_zip(source: LocalSource, name: str) -> bool:
    try:
        return source.pread(name, 0, len(_ZIP)) == _ZIP
    except OSError:
        return False
