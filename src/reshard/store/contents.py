"""What files held when they were written, so that it is seen whether they still do.

A small file is digested whole.  Of a large one windows are, evenly over it: what somebody else put
under its name differs there, and looking costs little.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path, PurePosixPath

from reshard.store.digest import digest_bytes

_WHOLE_NBYTES = 1 << 20
_MAX_NBYTES = 1 << 26
"""More than so many bytes of a file are not read to compare it."""

_WINDOWS = 16
_WINDOW_NBYTES = 4096
_TENSORS = 8
"""Tensors of a file of a universal checkpoint that are looked at."""

Range = tuple[int, int]
"""(byte offset, number of bytes)."""

Claim = tuple[Sequence[Range], object]
"""Ranges of a file, and the digest of their bytes."""


def content_digest(nbytes: int, read: Callable[[int, int], bytes]) -> str:
    """The digest of a file of so many bytes, or of its windows.

    Args:  read: (byte offset, number of bytes) -> the bytes that are there.
    """
    return digest_bytes(b"".join(read(at, size) for at, size in _windows(nbytes)))


def _windows(nbytes: int) -> list[Range]:
    if nbytes <= _WHOLE_NBYTES:
        return [(0, nbytes)]
    last = nbytes - _WINDOW_NBYTES
    return [(last * index // (_WINDOWS - 1), _WINDOW_NBYTES) for index in range(_WINDOWS)]


def changed_by_list(folder: Path, entries: Mapping[str, object]) -> Iterator[str]:
    """The files that do not hold what a list says; those that are gone are left out.

    Args:  entries: name -> number of bytes and digest.
    Raises: OSError.
    """
    for name, entry in entries.items():
        match entry:
            case [int(nbytes), str(digest)] if nbytes >= 0:
                if _is_changed(folder, name, nbytes, [(_windows(nbytes), digest)]):
                    yield name


def changed_by_manifest(
    folder: Path, files: Mapping[str, object], tensors: Sequence[object]
) -> Iterator[str]:
    """The files that do not hold what the manifest of a universal checkpoint says.

    Args:  files, tensors: its entries.
    Raises: OSError.
    """
    members: dict[str, list[tuple[int, int, object]]] = {}
    for item in tensors:
        match item:
            case {"file": str(file), "byte_range": [int(start), int(end)], "digest": digest}:
                if 0 <= start < end <= start + _WHOLE_NBYTES:
                    members.setdefault(file, []).append((end - start, start, digest))
    for name, entry in files.items():
        match entry:
            case {"nbytes": int(nbytes), "digest": digest} if nbytes <= _MAX_NBYTES:
                claims: list[Claim] = [([(0, nbytes)], digest)]
            case {"nbytes": int(nbytes)}:
                few = nsmallest(_TENSORS, members.get(name, ()), key=lambda item: item[:2])
                claims = [([(start, size)], digest) for size, start, digest in few]
            case _:
                continue
        if _is_changed(folder, name, nbytes, claims):
            yield name


def _is_changed(folder: Path, name: str, nbytes: int, claims: Sequence[Claim]) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return False  # it is no file of the folder
    try:
        fd = os.open(folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return False  # a folder; what is no file is somebody's own, and said elsewhere
        return status.st_size != nbytes or any(
            digest_bytes(b"".join(os.pread(fd, size, at) for at, size in ranges)) != digest
            for ranges, digest in claims
        )
    finally:
        os.close(fd)
