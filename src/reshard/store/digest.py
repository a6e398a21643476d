"""Digests of stored bytes: xxh3-128, written as `xxh3-128:HEX`; and the crc32 of torch's zips."""

from __future__ import annotations

import os
from typing import Protocol

from reshard.store.regular_file import open_regular

try:
    from zlib_ng.zlib_ng import crc32  # the same values as zlib's, five to fifteen times faster
except ImportError:  # beside a framework, without what is installed with reshard
    from zlib import crc32

_CHUNK = 1 << 20
PREFIX = "xxh3-128:"

Buffer = bytes | bytearray | memoryview


class Digest(Protocol):
    """A digest that is being computed."""

    def update(self, data: Buffer) -> None:
        """Go on with these bytes."""

    def text(self) -> str:
        """The digest so far, with the name of its algorithm."""


class _Xxh3:
    __slots__ = ("_state",)

    def __init__(self) -> None:
        from xxhash import xxh3_128

        self._state = xxh3_128()

    def update(self, data: Buffer) -> None:
        self._state.update(data)

    def text(self) -> str:
        return PREFIX + self._state.hexdigest()


def new_digest() -> Digest:
    """A digest of no bytes yet."""
    return _Xxh3()


def digest_bytes(data: Buffer) -> str:
    """The digest of some bytes."""
    digest = new_digest()
    digest.update(data)
    return digest.text()


def digest_file_range(path: str | os.PathLike[str], byte_offset: int, nbytes: int) -> str:
    """The digest of a range of a file, read through a buffer of 1 MiB.

    Raises: OSError; a range that ends behind the file is digested as far as it goes.
    """
    digest = new_digest()
    buffer = memoryview(bytearray(min(_CHUNK, max(nbytes, 1))))
    fd = open_regular(path)
    try:
        at, stop = byte_offset, byte_offset + nbytes
        while at < stop:
            got = os.preadv(fd, [buffer[: min(len(buffer), stop - at)]], at)
            if not got:
                break
            digest.update(buffer[:got])
            at += got
    finally:
        os.close(fd)
    return digest.text()


__all__ = [
    "PREFIX",
    "Buffer",
    "Digest",
    "crc32",
    "digest_bytes",
    "digest_file_range",
    "new_digest",
]
