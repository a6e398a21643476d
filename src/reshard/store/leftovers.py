"""What runs that were cut off have left beside a destination, and how it is settled."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from reshard.errors import output_error
from reshard.store.destination import Places
from reshard.store.journal import NEW, Making, Notes
from reshard.store.owned import foreign_entries, foreign_error, remove_written, written_names


def reason_against(notes: Notes, making: Making) -> str:
    """Why a run cannot go on from these notes; empty if it can."""
    if notes.making is None or notes.fault:
        return notes.fault
    if not making.plan:
        return "it cannot be compared with this conversion"
    return notes.making.difference(making)


def settle(places: Places, is_in_place: bool) -> None:
    """End a replacement that was cut off: the old folder is put back, or goes.

    Raises: ReshardError[output-foreign]; OSError.
    """
    if places.gone.exists():
        remove_written(places.gone, written_names(places.gone))
    if not places.old.exists():
        return
    if is_in_place:
        remove_old(places)
    elif not os.path.lexists(places.dst):
        os.rename(places.old, places.dst)
    else:
        raise output_error(
            "output-foreign",
            f"{places.old} contains the previous content of {places.dst}",
            notes=[
                "a run was interrupted while it replaced that folder, and another one is there now"
            ],
            helps=["move one of the two elsewhere"],
        )


def remove_old(places: Places) -> None:
    """Remove what was replaced, under a name from which it is not put back.

    Raises: ReshardError[output-foreign]; OSError.
    """
    os.rename(places.old, places.gone)
    remove_written(places.gone, written_names(places.gone))


def check_partial(places: Places, names: Iterable[str]) -> None:
    """Refuse a hidden folder with anything in it that is not ours.

    Args:  names: of the files that may be in it.
    Raises: ReshardError[output-foreign]; OSError.
    """
    inside = {"journal", NEW, "data/.", *(f"data/{name}" for name in names)}
    foreign = foreign_entries(places.partial, inside)
    if foreign:
        raise foreign_error(places.partial, foreign)


def remove_partial(places: Places, names: Iterable[str]) -> None:
    """Remove the hidden folder.

    Args:  names: of the files that may be in it.
    Raises: ReshardError[output-foreign]; OSError.
    """
    check_partial(places, names)
    if places.data.exists():
        remove_written(places.data, names)
    for name in (NEW, "journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(places.partial / name)
    os.rmdir(places.partial)
