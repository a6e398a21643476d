"""Holds the files of a folder against its manifest, without reading tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.formats.universal import FRAMEWORK, LAYOUT
from reshard.formats.universal.manifest import FileEntry, Manifest, TensorEntry
from reshard.storage.digest import digest_bytes
from reshard.storage.safetensors import read_header

_AGAIN = ("copy the checkpoint again, or convert its source again",)


def check_files(path: Path, manifest: Manifest) -> dict[str, bytes]:
    """The contents of the files that a reader needs whole, once every file was held to its entry.

    Args:  path: the folder.
    Returns: `layout.ucl` and, where there is one, `extra/framework.json`, by path.
    Raises: ReshardError[missing-file | changed-file], every one that is found, and what a broken
            safetensors header raises.
    """
    problems = _sizes(path, manifest)
    if problems:
        raise ReshardError(problems, Exit.SOURCE)
    texts = {}
    for item in manifest.files:
        if item.path in (LAYOUT, FRAMEWORK) and item.head_nbytes is None:
            texts[item.path] = (path / item.path).read_bytes()
            problems += _changed_text(path, item, texts[item.path])
    members: dict[str, list[TensorEntry]] = {}
    for tensor in manifest.tensors:
        members.setdefault(tensor.file, []).append(tensor)
    for item in manifest.files:
        if item.head_nbytes is not None:
            problems += _header(path, item, members.get(item.path, []))
    if problems:
        raise ReshardError(problems, Exit.SOURCE)
    return texts


def _sizes(path: Path, manifest: Manifest) -> list[Diagnostic]:
    missing = []
    problems = []
    for item in manifest.files:
        file = path / item.path
        if not file.is_file():
            missing.append(item.path)
            continue
        found = file.stat().st_size
        if found != item.nbytes:
            problems.append(
                Diagnostic(
                    "changed-file",
                    f"`{item.path}` has {found} bytes, the manifest says {item.nbytes}",
                    notes=(f"in {path}",),
                    helps=_AGAIN,
                )
            )
    if missing:
        problems.insert(0, _missing(path, missing, len(manifest.files)))
    return problems


def _missing(path: Path, names: Sequence[str], total: int) -> Diagnostic:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return Diagnostic(
        "missing-file",
        f"{len(names)} of {total} files that the manifest lists are not there",
        notes=(f"in {path}: {shown}{more}",),
        helps=_AGAIN,
    )


def _changed_text(path: Path, item: FileEntry, data: bytes) -> list[Diagnostic]:
    found = digest_bytes(data)
    if found == item.digest:
        return []
    own = "to read through a layout of your own, keep this file and use `--layout`"
    return [
        Diagnostic(
            "changed-file",
            f"`{item.path}` is not as it was written",
            notes=(f"in {path}", f"its digest is {found}, the manifest says {item.digest}"),
            helps=(own, *_AGAIN) if item.path == LAYOUT else _AGAIN,
        )
    ]


def _header(path: Path, item: FileEntry, members: Sequence[TensorEntry]) -> list[Diagnostic]:
    header = read_header(path / item.path)
    found = {
        name: (stored.dtype, stored.shape, stored.byte_offset)
        for name, stored in header.tensors.items()
    }
    listed = {entry.name: (entry.dtype, entry.shape, entry.byte_offset) for entry in members}
    notes = []
    starts = (stored.byte_offset for stored in header.tensors.values())
    head = min(starts, default=header.nbytes)
    if head != item.head_nbytes:
        notes.append(f"its header has {head} bytes, the manifest says {item.head_nbytes}")
    for name in [*found, *(name for name in listed if name not in found)]:
        if found.get(name) != listed.get(name):
            notes.append(
                f"`{name}` is {_told(found.get(name))} in the file, "
                f"{_told(listed.get(name))} in the manifest"
            )
    if not notes:
        return []
    more = [f"and {len(notes) - 5} more differences"] if len(notes) > 5 else []
    return [
        Diagnostic(
            "changed-file",
            f"`{item.path}` does not hold what the manifest says",
            notes=(f"in {path}", *notes[:5], *more),
            helps=_AGAIN,
        )
    ]


def _told(stored: tuple[str, tuple[int, ...], int] | None) -> str:
    if stored is None:
        return "not listed"
    dtype, shape, byte_offset = stored
    return f"{dtype} {list(shape)} at byte {byte_offset}"
