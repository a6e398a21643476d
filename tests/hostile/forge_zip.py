"""Zip files, field by field."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Entry:
    """A member; what is None is told as it is.

    Args:  local_name, local_at, size, packed, crc: lies of the directory.  extra: of the directory.
    """

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    local_name: str | None = None
    local_at: int | None = None
    size: int | None = None
    packed: int | None = None
    crc: int | None = None
    extra: bytes = b""
    at: int = field(default=0, init=False)


def zipped(
    entries: Sequence[Entry],
    *,
    comment: bytes = b"",
    count: int | None = None,
    directory_at: int | None = None,
    directory_nbytes: int | None = None,
    disk: int = 0,
    between: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A zip file.

    Args:  count, directory_at, directory_nbytes, disk: lies of the end record.
           between: bytes before the end record.  after: behind it.
    """
    out = bytearray()
    for entry in entries:
        entry.at = len(out)
        own = (entry.name if entry.local_name is None else entry.local_name).encode()
        stated = (zlib.crc32(entry.data), len(entry.data), len(entry.data))
        if entry.flags & 8:  # said behind the data
            stated = (0, 0, 0)
        out += struct.pack(
            "<4s5H3L2H", b"PK\x03\x04", 20, entry.flags, entry.method, 0, 0, *stated, len(own), 0
        )
        out += own + entry.data
    start = len(out)
    for entry in entries:
        own = entry.name.encode()
        size = len(entry.data) if entry.size is None else entry.size
        packed = size if entry.packed is None else entry.packed
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        at = entry.at if entry.local_at is None else entry.local_at
        out += struct.pack(
            "<4s4B4H3L5H2L",
            b"PK\x01\x02",
            *(20, 0, 20, 0),
            *(entry.flags, entry.method, 0, 0),
            *(crc, packed, size),
            *(len(own), len(entry.extra), 0, 0, 0),
            *(0, at),
        )
        out += own + entry.extra
    nbytes = len(out) - start if directory_nbytes is None else directory_nbytes
    total = len(entries) if count is None else count
    out += between
    out += struct.pack(
        "<4s4H2LH",
        b"PK\x05\x06",
        *(disk, disk, total, total),
        *(nbytes, start if directory_at is None else directory_at),
        len(comment),
    )
    return bytes(out + comment + after)


def archive(pickle: bytes, storages: dict[str, bytes] | None = None) -> list[Entry]:
    """The members of a file of `torch.save`."""
    data = {"0": bytes(16)} if storages is None else storages
    return [
        Entry("a/data.pkl", pickle),
        Entry("a/byteorder", b"little"),
        *(Entry(f"a/data/{key}", raw) for key, raw in data.items()),
        Entry("a/version", b"3\n"),
    ]


def torch_file(pickle: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A file of `torch.save`."""
    return zipped(archive(pickle, storages))
