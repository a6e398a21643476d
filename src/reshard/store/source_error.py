"""What is told when the system refuses to read a source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from reshard.errors import ReshardError, source_error


@contextlib.contextmanager
def as_source_error(path: Path) -> Iterator[None]:
    """Turn what the system says into an error of ours.

    Args:  path: what is read, where the system does not say of which file it speaks.
    """
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else str(path)
        raise unreadable(named, error) from None


def unreadable(path: str | Path, error: OSError) -> ReshardError:
    """The error for a file that cannot be read."""
    return source_error(
        "source-unreadable",
        f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}",
        helps=["check that the file exists, that you may read it, and that its disk has no errors"],
    )
