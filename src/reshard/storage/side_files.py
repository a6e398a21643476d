"""The small files of a source that go along as they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reshard.storage.regular_file import FileTooLargeError, read_regular, unreadable

MAX_NBYTES = 1 << 28
"""Of each."""


def read_side_files(root: str, paths: Iterable[str]) -> dict[str, bytes]:
    """The bytes of each file, by path.

    Args:  root: the folder that paths start from.
    Raises: ReshardError[source-unreadable].
    """
    out: dict[str, bytes] = {}
    for path in paths:
        try:
            out[path] = read_regular(Path(root) / path, MAX_NBYTES)
        except (OSError, FileTooLargeError) as error:
            raise unreadable(Path(root) / path, error) from None
    return out
