"""Holds the files of a folder against its manifest, without reading tensors."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.formats.universal import FRAMEWORK, LAYOUT
from reshard.formats.universal.manifest import FileEntry, Manifest, TensorEntry
from reshard.formats.universal.read_manifest import MAX_NBYTES
from reshard.storage.index import SUFFIX
from reshard.storage.safetensors import read_header
from reshard.store.digest import digest_bytes
from reshard.store.source import LocalSource

AGAIN = ("copy the checkpoint again, or convert its source again",)
_SHOWN = 5


def check_files(path: Path, manifest: Manifest) -> dict[str, bytes]:
    """The contents of the files that a reader needs whole, once every file was held to its entry.

    Args:  path: the folder.
    Returns: `layout.ucl`, `extra/framework.json`, and the files that go along, by path.
    Raises: ReshardError[missing-file | changed-file | bad-safetensors], every one that is found.
    """
    problems = [item for faults in file_problems(path, manifest).values() for item in faults]
    texts: dict[str, bytes] = {}
    source = LocalSource(path)
    if not problems:
        for item in manifest.files:
            if item.path in (LAYOUT, FRAMEWORK) or is_side_file(item):
                texts[item.path] = source.text(item.path, MAX_NBYTES)
                problems += _changed_text(path, item, texts[item.path])
    if problems:
        raise ReshardError(problems, Exit.SOURCE)
    return texts


def is_side_file(item: FileEntry) -> bool:
    """Whether a file is none of the format's own, but came along with the weights."""
    own = item.path in (LAYOUT, FRAMEWORK) or item.path.endswith(SUFFIX)
    return item.head_nbytes is None and not own


def file_problems(path: Path, manifest: Manifest) -> dict[str, list[Diagnostic]]:
    """By file, what is wrong with its presence, its size, and its header; one that is well is not
    among them.  What is missing is told once, for all of them.
    """
    source = LocalSource(path)
    for item in manifest.files:
        source.path(item.path)  # refuses what leads out of the folder
    members: dict[str, list[TensorEntry]] = {}
    for tensor in manifest.tensors:
        members.setdefault(tensor.file, []).append(tensor)
    missing = [item.path for item in manifest.files if not source.has(item.path)]
    problems: dict[str, list[Diagnostic]] = {name: [] for name in missing}
    if missing:
        problems[missing[0]].append(_missing(path, missing, len(manifest.files)))
    for item in manifest.files:
        if item.path in problems:
            continue
        nbytes = source.stat(item.path).nbytes
        if nbytes != item.nbytes:
            problems[item.path] = [_size(path, item, nbytes)]
        elif item.head_nbytes is not None:
            faults = _header(path, item, members.get(item.path, []))
            if faults:
                problems[item.path] = faults
    return problems


def _missing(path: Path, names: list[str], total: int) -> Diagnostic:
    examples = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return Diagnostic(
        "missing-file",
        f"{len(names)} of {total} files that the manifest lists are not there",
        notes=(f"in {path}: {examples}{more}",),
        helps=AGAIN,
    )


def _size(path: Path, item: FileEntry, nbytes: int) -> Diagnostic:
    return Diagnostic(
        "changed-file",
        f"`{item.path}` has {nbytes} bytes, the manifest says {item.nbytes}",
        notes=(f"in {path}",),
        helps=AGAIN,
    )


def _changed_text(path: Path, item: FileEntry, data: bytes) -> list[Diagnostic]:
    digest = digest_bytes(data)
    if digest == item.digest:
        return []
    advice = "to read through a layout of your own, keep this file and use `--layout`"
    return [
        Diagnostic(
            "changed-file",
            f"`{item.path}` is not as it was written",
            notes=(f"in {path}", f"its digest is {digest}, the manifest says {item.digest}"),
            helps=(advice, *AGAIN) if item.path == LAYOUT else AGAIN,
        )
    ]


def _header(path: Path, item: FileEntry, members: list[TensorEntry]) -> list[Diagnostic]:
    try:
        header = read_header(path / item.path)
    except ReshardError as error:
        return list(error.diagnostics)
    in_file = {
        name: (stored.dtype, stored.shape, stored.byte_offset)
        for name, stored in header.tensors.items()
    }
    in_manifest = {entry.name: (entry.dtype, entry.shape, entry.byte_offset) for entry in members}
    notes = []
    head = min((offset for _, _, offset in in_file.values()), default=header.nbytes)
    if head != item.head_nbytes:
        notes.append(f"its header has {head} bytes, the manifest says {item.head_nbytes}")
    for name in [*in_file, *(name for name in in_manifest if name not in in_file)]:
        if in_file.get(name) != in_manifest.get(name):
            notes.append(
                f"`{name}` is {_told(in_file.get(name))} in the file, "
                f"{_told(in_manifest.get(name))} in the manifest"
            )
    if not notes:
        return []
    more = [f"and {len(notes) - _SHOWN} more differences"] if len(notes) > _SHOWN else []
    return [
        Diagnostic(
            "changed-file",
            f"`{item.path}` does not hold what the manifest says",
            notes=(f"in {path}", *notes[:_SHOWN], *more),
            helps=AGAIN,
        )
    ]


def _told(stored: tuple[str, tuple[int, ...], int] | None) -> str:
    if stored is None:
        return "not listed"
    dtype, shape, byte_offset = stored
    return f"{dtype} {list(shape)} at byte {byte_offset}"
