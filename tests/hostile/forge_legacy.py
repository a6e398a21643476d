"""Torch files in the format before 1.6, sound or not."""

from __future__ import annotations

import struct

from forge_pickle import listed, number, program, table, text

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
VERSION = program(number(1001))
LITTLE = program(table(protocol_version=number(1001), little_endian=b"\x88"))


def legacy(
    pickle: bytes,
    storages: dict[str, bytes],
    *,
    version: bytes = VERSION,
    machine: bytes = LITTLE,
    keys: bytes | None = None,
    numel: int | None = None,
    itemsize: int = 4,
) -> bytes:
    """A file.

    Args:  numel: what each storage says of its length, if not what is right.
           keys: the list of storages, if not the right one.
    """
    listing = program(listed(*map(text, storages))) if keys is None else keys
    out = MAGIC + version + machine + pickle + listing
    for data in storages.values():
        count = len(data) // itemsize if numel is None else numel
        out += struct.pack("<q", count) + data
    return out
