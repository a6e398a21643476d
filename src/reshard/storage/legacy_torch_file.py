"""The file format of `torch.save` before 1.6: pickles one after another, then the storages.

Five pickles: a magic number, the version of the format, what the machine was, the object, and the
keys of its storages in the order in which they follow: each as its number of elements in eight
bytes, little-endian, and the elements. How long an element is, only the object's pickle says.

Source: torch/serialization.py (`_legacy_save`, `_legacy_load`), torch 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.storage.pickle_reader import read_first_pickle
from reshard.storage.pickle_values import storage_dtype
from reshard.storage.window import Window
from reshard.storage.zip_directory import Member

MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
_VERSION = 1001
_MAX_ELEMENTS = 2**63 - 1
_AGAIN = "the file is damaged or incomplete; copy it again"


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """What lies where.

    Args:  pickle: of the object.  members: by `data/KEY`, the bytes of each storage.
    """

    pickle: bytes
    members: Mapping[str, Member]


def is_legacy(head: bytes) -> bool:
    """Whether a file begins as one of this format."""
    return head[:1] == b"\x80" and MAGIC in head[:32]


def read_legacy(file: Window, where: str, byte_offset: int, nbytes: int) -> LegacyFile:
    """Find the object and the storages of a file; none of it is executed, no storage is read.

    Raises: ReshardError[legacy-torch-file | big-endian | truncated | bad-pickle].
    """
    reader = _Reader(file, where, byte_offset, byte_offset + nbytes)
    reader.next()  # the magic number
    version, machine = reader.next(), reader.next()
    if version != _VERSION:
        _refuse(where, f"its version is {version!r:.40}; only {_VERSION} is known")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise source_error(
            "big-endian",
            f"{where} was not written on a little-endian machine",
            notes=["only little-endian files are read"],
            helps=["load and save it again with torch on the machine that wrote it"],
        )
    reader.next()
    pickle, dtypes = reader.last, dict(reader.dtypes)
    keys = reader.next()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        _refuse(where, "it does not list its storages")
    if len({*keys}) < len(keys) or {*keys} != dtypes.keys():
        _refuse(where, f"it lists {len(keys)} storages, its tensors use {len(dtypes)}")
    return LegacyFile(pickle, reader.storages(keys, dtypes))


class _Reader:
    """Reads one pickle after another."""

    def __init__(self, file: Window, where: str, at: int, stop: int) -> None:
        self._file, self._where, self._at, self._stop = file, where, at, stop
        self.last = b""
        self.dtypes: dict[str, DType] = {}

    def next(self) -> object:
        """The tree of the next pickle, with nothing for its tensors."""
        rest = self._stop - self._at
        root, self.last = read_first_pickle(
            lambda count: self._file.pread(min(count, rest), self._at),
            rest,
            self._where,
            self._storage,
        )
        self._at += len(self.last)
        return root

    def _storage(self, key: object) -> object:
        """Note the element type of a storage."""
        if isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage":
            dtype = storage_dtype(key[1])
            if dtype is not None and isinstance(key[2], str):
                self.dtypes.setdefault(key[2], dtype)
        return None

    def storages(self, keys: list[str], dtypes: Mapping[str, DType]) -> dict[str, Member]:
        """Where each storage lies, behind the pickles."""
        out: dict[str, Member] = {}
        for key in keys:
            head = self._file.pread(8, self._at) if self._at + 8 <= self._stop else b""
            numel = int.from_bytes(head, "little", signed=True)
            if len(head) == 8 and not 0 <= numel <= _MAX_ELEMENTS // 16:
                _refuse(self._where, f"storage `{key}` would have {numel} elements")
            nbytes = numel * dtypes[key].itemsize
            self._at += 8
            if len(head) < 8 or self._at + nbytes > self._stop:
                raise source_error(
                    "truncated",
                    f"{self._where} ends within storage `{key}`",
                    notes=[f"it would end at byte {self._at + nbytes}; the file has {self._stop}"],
                    helps=[_AGAIN],
                )
            name = f"data/{key}"
            out[name] = Member(name, self._at, nbytes, 0, self._at)
            self._at += nbytes
        if self._at != self._stop:
            _refuse(self._where, f"{self._stop - self._at} bytes follow its last storage")
        return out


def _refuse(where: str, why: str) -> NoReturn:
    raise source_error(
        "legacy-torch-file",
        f"{where} is not a valid file of torch before 1.6",
        notes=[why],
        helps=[_AGAIN],
    )
