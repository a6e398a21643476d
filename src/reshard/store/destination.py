"""A destination and the hidden names beside it: what may be written, and what may be replaced."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import ReshardError, output_error
from reshard.store.journal import Notes, read_journal
from reshard.store.output_error import as_output_error
from reshard.store.owned import changed_files, foreign_entries, written_names

PARTIAL = ".reshard-partial"
"""What the name of a folder ends with that holds what is not in place yet."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Places:
    """The names beside a destination.

    Args:  dst: absolute.
    """

    dst: Path

    @property
    def partial(self) -> Path:
        """Holds the journal, and `data`, the folder that becomes the destination."""
        return self._beside("partial")

    @property
    def data(self) -> Path:
        """The folder that becomes the destination."""
        return self.partial / "data"

    @property
    def journal(self) -> Path:
        """What was done so far."""
        return self.partial / "journal"

    @property
    def lock(self) -> Path:
        """Held by the run that writes."""
        return self._beside("lock")

    @property
    def old(self) -> Path:
        """What is being replaced: whole, and to be put back if its successor does not arrive."""
        return self._beside("old")

    @property
    def gone(self) -> Path:
        """What was replaced, and is being removed."""
        return self._beside("gone")

    def _beside(self, what: str) -> Path:
        return self.dst.parent / f".{self.dst.name}.reshard-{what}"

    def notes(self) -> Notes | None:
        """What the journal says; None if there is none.

        Raises: OSError.
        """
        try:
            return read_journal(self.journal)
        except FileNotFoundError:
            return None

    def is_in_place(self, notes: Notes | None) -> bool:
        """Whether the run of this journal had put its folder in place before it was stopped."""
        if notes is None or notes.committed is None:
            return False
        inode = folder_inode(self.dst)
        return inode is not None and inode == notes.committed and not os.path.lexists(self.data)


def folder_inode(path: Path) -> int | None:
    """The inode of a folder; None where there is no folder, or a link to one.

    Raises: OSError.
    """
    try:
        status = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino if stat.S_ISDIR(status.st_mode) else None


def is_unfinished(path: Path) -> bool:
    """Whether a path leads into what a run keeps until it is in place."""
    return any(part.startswith(".") and part.endswith(PARTIAL) for part in path.resolve().parts)


def check_destination(dst: Path, force: bool = False) -> None:
    """Refuse a destination that could not be written, or must not be; touches nothing.

    Raises: ReshardError[output-exists | output-foreign | output-parent-missing].
    """
    if not dst.parent.is_dir():
        raise output_error(
            "output-parent-missing",
            f"the folder {dst.parent} does not exist",
            notes=[f"{dst} would be created in it"],
            helps=["create it first, or correct the path"],
        )
    if not (dst.exists() or dst.is_symlink()):
        return
    if dst.is_symlink() or not dst.is_dir():
        raise output_error(
            "output-foreign",
            f"{dst} is not a folder",
            notes=["reshard never replaces a file or a link"],
            helps=["choose another destination"],
        )
    names = sorted(os.listdir(dst))
    if not names:
        return
    if not force:
        raise output_error(
            "output-exists",
            f"{dst} exists and is not empty",
            notes=[f"it contains {len(names)} entries, e.g. `{names[0]}`"],
            helps=["choose another destination, or replace this one with `--force`"],
        )
    written = written_names(dst)
    foreign = foreign_entries(dst, written)
    if foreign:
        raise _not_replaced(dst, foreign, bool(written))
    changed = changed_files(dst)
    if changed:
        raise output_error(
            "output-foreign",
            f"{dst} contains files that were changed after reshard wrote them, so `--force` does "
            "not "
            "replace it",
            notes=[f"changed: {_listed(changed)}"],
            helps=["move them elsewhere yourself, or choose another destination"],
        )


def check_beforehand(dst: Path, force: bool = False) -> None:
    """As `check_destination`, before it is known whether a run may only end what another began.

    Raises: as `check_destination`.
    """
    places = Places(Path(os.path.abspath(dst)))
    try:
        notes = places.notes()
    except OSError:
        notes = None  # whatever is wrong with it is told by the run that wants to write
    with as_output_error(dst):
        if not places.is_in_place(notes):
            check_destination(dst, force)


def check_hidden(places: Places) -> None:
    """Refuse hidden names that are not what reshard makes under them.

    Raises: ReshardError[output-foreign]; OSError.
    """
    for path in (places.partial, places.data, places.old, places.gone):
        if os.path.lexists(path) and folder_inode(path) is None:
            raise _not_ours(path, "folder")
    if os.path.lexists(places.journal) and not stat.S_ISREG(os.lstat(places.journal).st_mode):
        raise _not_ours(places.journal, "file")


def _not_ours(path: Path, kind: str) -> ReshardError:
    return output_error(
        "output-foreign",
        f"{path} is not a {kind}",
        notes=[f"reshard keeps a {kind} under this name, and does not follow links"],
        helps=["remove it yourself, or choose another destination"],
    )


def _not_replaced(dst: Path, foreign: list[str], is_listed: bool) -> ReshardError:
    notes = [f"it holds {_listed(foreign)}"]
    if not is_listed:
        notes.append("nothing in it shows that reshard wrote it")
    return output_error(
        "output-foreign",
        f"{dst} contains files that reshard did not write, so `--force` does not replace it",
        notes=notes,
        helps=["move them elsewhere yourself, or choose another destination"],
    )


def _listed(names: list[str]) -> str:
    text = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return text + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
