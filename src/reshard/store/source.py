"""The folder of a source: the one way to its files.

Names are relative to the folder, with `/`. A link may lead about in the folder (and in its part of
the cache of the Hugging Face hub), but not out of it; what is no ordinary file is not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from reshard.errors import source_error
from reshard.plan.catalog import SourceFile
from reshard.store.links import refuse_outside
from reshard.store.regular_file import pread_regular, read_file, read_note, read_regular


class LocalSource:
    """A folder on this machine.

    Args:  root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, folder: str = "") -> tuple[str, ...]:
        """Names of the files that lie directly in a folder, sorted; none of a folder that is not
        there. A link that leads nowhere is a file too: it is missed when it is read.
        """
        return self._listed(folder, folders=False)

    def folders(self, folder: str = "") -> tuple[str, ...]:
        """Names of the folders that lie directly in a folder, sorted."""
        return self._listed(folder, folders=True)

    def matching(self, pattern: str, *, folders: bool = False) -> Iterator[str]:
        """Files whose names follow a pattern with `*` in it, `mp_rank_*/model_*rng.pt`, sorted.

        Args:  folders: the folders that do.
        """
        above, _, last = pattern.rpartition("/")
        for folder in self.matching(above, folders=True) if above else ("",):
            for name in self._listed(folder, folders=folders):
                if fnmatchcase(name.rpartition("/")[2], last):
                    yield name

    def below(self, folder: str = "", depth: int | None = None) -> Iterator[str]:
        """Files in a folder and in those below it, none hidden; not what lies behind a link to a
        folder, or in one that may not be read.

        Args:  depth: so many folders down.
        """
        try:
            files, folders = self.files(folder), self.folders(folder)
        except OSError:
            return
        yield from (name for name in files if not _is_hidden(name))
        for name in folders if depth != 0 else ():
            if not _is_hidden(name) and not self.is_link(name):
                yield from self.below(name, None if depth is None else depth - 1)

    def has(self, name: str) -> bool:
        """Whether there is an ordinary file; what lies behind a link counts."""
        try:
            return self._at(name).is_file()
        except OSError:  # a name that no file can have
            return False

    def has_folder(self, name: str = "") -> bool:
        """Whether there is a folder; what lies behind a link counts."""
        return self._at(name).is_dir()

    def is_link(self, name: str) -> bool:
        """Whether a name is that of a link."""
        return self._at(name).is_symlink()

    def note(self, name: str) -> str:
        """The text of a file of one word, such as the one that names the last step.

        Raises: ReshardError[source-unreadable].
        """
        return read_note(self._at(name))

    def stat(self, name: str) -> SourceFile:
        """A file as it is now.

        Raises: OSError; ReshardError[outside-link].
        """
        status = self.path(name).stat()
        return SourceFile(name, status.st_size, status.st_mtime_ns)

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a file.

        Args:  limit: of bytes.
        Raises: OSError; ReshardError[outside-link].
        """
        return read_regular(self.path(name), limit)

    def pread(self, name: str, byte_offset: int, nbytes: int) -> bytes:
        """Some bytes of a file; fewer where it ends.

        Raises: OSError; ReshardError[outside-link].
        """
        return pread_regular(self.path(name), byte_offset, nbytes)

    def path(self, name: str) -> Path:
        """The path of a file, for what reads a format of files.

        Raises: ReshardError[outside-link].
        """
        path = self._at(name)
        refuse_outside(self.root, path)
        return path

    def need(self, name: str, named_by: str, help_text: str) -> SourceFile:
        """A file that something says is there.

        Args:  named_by: what says so, for messages.  help_text: where to copy it from.
        Raises: ReshardError[missing-file | outside-link].
        """
        try:
            return self.stat(name)
        except OSError:  # it is not there, or its name is none that a file can have
            raise source_error(
                "missing-file",
                f"{self._at(name)} is missing",
                notes=[f"{named_by} names it"],
                helps=[help_text],
            ) from None

    def text(self, name: str, limit: int) -> bytes:
        """All bytes of a small file that is there.

        Raises: ReshardError[source-unreadable | outside-link].
        """
        return read_file(self.path(name), limit)

    def _at(self, name: str) -> Path:
        return self.root / name

    def _listed(self, folder: str, *, folders: bool) -> tuple[str, ...]:
        prefix = f"{folder}/" if folder else ""
        try:
            with os.scandir(self.root / folder) as entries:
                names = [item.name for item in entries if _is_folder(item) == folders]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(f"{prefix}{name}" for name in sorted(names))


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
