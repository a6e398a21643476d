"""What is asked of a store; a folder on this machine is one, and others are a class more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from reshard.plan.catalog import SourceFile
from reshard.store.journal import Record


class Source(Protocol):
    """Files by name, wherever they are."""

    def files(self, folder: str = "") -> tuple[str, ...]:
        """Names of the files that lie directly in a folder, sorted."""

    def folders(self, folder: str = "") -> tuple[str, ...]:
        """Names of the folders that lie directly in a folder, sorted."""

    def has(self, name: str) -> bool:
        """Whether there is an ordinary file."""

    def stat(self, name: str) -> SourceFile:
        """A file as it is now."""

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a file."""

    def pread(self, name: str, byte_offset: int, nbytes: int) -> bytes:
        """Some bytes of a file."""


class Destination(Protocol):
    """Where a plan's arrays are written; `output.OutputFolder` is one."""

    def open_file(self, name: str, nbytes: int, /) -> object:
        """Make a file of that size, if it is not there."""

    def write(self, name: str, byte_offset: int, data: memoryview, /) -> None:
        """Write bytes into a file that was opened; safe from several threads."""


@runtime_checkable
class NotingDestination(Destination, Protocol):
    """One that notes which arrays are written, for a later run to go on from."""

    def note(self, records: Iterable[Record], nbytes: int, /) -> None:
        """Note arrays of which every byte was written; safe from several threads."""
