"""Files of many ranks whose pickles are the same bytes: read one, and move its references.

Ranks of stage 3 save the same names and shapes, and a pickle of thousands of tensors takes a
quarter of a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from reshard.errors import ReshardError
from reshard.storage.inert import Record, Size
from reshard.storage.torch_file import TensorRef, open_torch_file
from reshard.storage.window import Window
from reshard.storage.zip_directory import Member, read_zip_directory
from reshard.store.regular_file import open_regular

_PICKLE = "data.pkl"
_KEPT = 4
_LEAST_NBYTES = 1 << 14
"""Pickles shorter than this are read anew."""
_MOST_NBYTES = 1 << 28
"""So are longer ones than this."""


@dataclass(frozen=True, slots=True)
class _Known:
    pickle: bytes
    root: object
    members: Mapping[str, Member]


class Siblings:
    """Reads files of `torch.save`, and remembers the last few of them."""

    def __init__(self) -> None:
        self._known: list[_Known] = []

    def root_of(self, path: Path) -> object:
        """The object tree of a file.  Raises: what `storage.torch_file` raises."""
        try:
            pickle, members = _look(path)
        except (OSError, ReshardError):
            return open_torch_file(path).root  # which tells more of what is wrong
        if len(pickle) < _LEAST_NBYTES:
            return open_torch_file(path).root
        for known in self._known:
            if known.pickle == pickle and _alike(known.members, members):
                return _Move(str(path), known.members, members).value(known.root)
        root = open_torch_file(path).root
        self._known = [_Known(pickle, root, members), *self._known[: _KEPT - 1]]
        return root


def _look(path: Path) -> tuple[bytes, dict[str, Member]]:
    """The bytes of a file's pickle, and its members without the name of the archive's folder."""
    fd = open_regular(path)
    try:
        directory = read_zip_directory(Window(fd), str(path), 0, os.fstat(fd).st_size)
        members = {name.partition("/")[2]: item for name, item in directory.items()}
        member = members.get(_PICKLE)
        is_small = member is not None and member.nbytes <= _MOST_NBYTES
        return os.pread(
            fd, member.nbytes, member.byte_offset
        ) if member and is_small else b"", members
    finally:
        os.close(fd)


def _alike(first: Mapping[str, Member], second: Mapping[str, Member]) -> bool:
    """Whether two files have the same members, byte order included."""
    if first.keys() != second.keys():
        return False
    order = "byteorder"
    if order in first and first[order].crc != second[order].crc:
        return False
    return all(item.nbytes == second[name].nbytes for name, item in first.items())


class _Move:
    """The same tree over another file."""

    def __init__(self, path: str, old: Mapping[str, Member], new: Mapping[str, Member]) -> None:
        self._path = path
        self._old = old
        self._new = new

    def value(self, value: object) -> object:
        """A value with the references of the other file."""
        if isinstance(value, TensorRef):
            return self._tensor(value)
        if isinstance(value, dict):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, Size):
            return value
        if isinstance(value, tuple):
            return tuple([self.value(item) for item in value])
        if isinstance(value, Record):
            return Record(
                value.module,
                value.name,
                tuple([self.value(item) for item in value.args]),
                value.how,
                [self.value(item) for item in value.state],
                [(self.value(key), self.value(item)) for key, item in value.items],
                [self.value(item) for item in value.appended],
            )
        return value

    def _tensor(self, ref: TensorRef) -> TensorRef:
        member = f"data/{ref.storage_key}"
        moved = self._new[member].byte_offset - self._old[member].byte_offset
        return replace(ref, file=self._path, byte_offset=ref.byte_offset + moved)
