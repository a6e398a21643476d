"""Which files of a folder reshard wrote, and the removal of those and of no others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from reshard.errors import ReshardError, output_error
from reshard.store.contents import changed_by_list, changed_by_manifest

RECEIPT = ".reshard-files.json"
"""Lists what was written, in a folder of a format that has no place for such a list."""

_MANIFEST = "manifest.json"
_MANIFEST_FORMAT = "reshard-universal"
_MAX_NBYTES = 1 << 30
_SHOWN = 3


def receipt_bytes(program: str, contents: Mapping[str, tuple[int, str]]) -> bytes:
    """The list of what was written, itself left out.

    Args:  contents: the number of bytes of each file, and its `content_digest`.
    """
    document = {
        "written_by": program,
        "files": sorted(contents),
        "contents": dict(sorted(contents.items())),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def written_names(folder: Path) -> frozenset[str]:
    """The files that a folder says reshard wrote into it; none if it does not say.

    Raises: OSError.
    """
    for name in (RECEIPT, _MANIFEST):
        document = _document(folder / name)
        files = document.get("files")
        if name == _MANIFEST and document.get("format") != _MANIFEST_FORMAT:
            continue
        if isinstance(files, list | dict):
            return frozenset({name, *map(str, files)})
    return frozenset()


def changed_files(folder: Path) -> list[str]:
    """The files that are listed and are not as they were written; those that are gone left out.

    A list of an earlier version says nothing of what the files held.

    Raises: OSError.
    """
    contents = _document(folder / RECEIPT).get("contents")
    if isinstance(contents, dict):
        return list(changed_by_list(folder, contents))
    document = _document(folder / _MANIFEST)
    files, tensors = document.get("files"), document.get("tensors")
    if document.get("format") != _MANIFEST_FORMAT or not isinstance(files, dict):
        return []
    states = tensors.values() if isinstance(tensors, dict) else ()
    entries = [item for of in states if isinstance(of, dict) for item in of.values()]
    return list(changed_by_manifest(folder, files, entries))


def foreign_entries(root: Path, names: Iterable[str]) -> list[str]:
    """Everything below a folder that is none of these files nor a folder that leads to one.

    A link is none of them, whatever its name.

    Args:  root: a folder, no link.  names: relative to it.
    Raises: OSError.
    """
    files = frozenset(names)
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    foreign: list[str] = []

    def look(folder: Path, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if name in folders:
                        look(Path(entry.path), name + "/")
                    else:
                        foreign.append(name + "/")
                elif not (name in files and entry.is_file(follow_symlinks=False)):
                    foreign.append(name)

    look(root, "")
    return foreign


def remove_written(root: Path, names: Iterable[str]) -> None:
    """Remove a folder that holds nothing but some of these files.

    What lists the others goes last, so that a removal that was cut off can be gone on with.

    Raises: ReshardError[output-foreign], and nothing is removed; OSError.
    """
    files = frozenset(names)
    foreign = foreign_entries(root, files)
    if foreign:
        raise foreign_error(root, foreign)
    last = {RECEIPT, _MANIFEST}
    for folder, _, files_in in os.walk(root, topdown=False):
        for name in files_in:
            if folder != str(root) or name not in last:
                os.unlink(os.path.join(folder, name))
        if folder != str(root):
            os.rmdir(folder)
    for name in last & files:
        if (root / name).exists():
            os.unlink(root / name)
    os.rmdir(root)


def foreign_error(root: Path, foreign: list[str]) -> ReshardError:
    """The error for a folder that holds what reshard did not write."""
    names = ", ".join(f"`{name}`" for name in foreign[:_SHOWN])
    more = f", and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
    return output_error(
        "output-foreign",
        f"{root} contains files that reshard did not write",
        notes=[names + more],
        helps=["move them elsewhere, or choose another destination"],
    )


def _document(path: Path) -> dict[str, object]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    with open(fd, "rb") as file:
        data = file.read(_MAX_NBYTES)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
