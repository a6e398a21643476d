"""The small files of a source that go along as they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reshard.errors import source_error


def read_side_files(root: str, paths: Iterable[str]) -> dict[str, bytes]:
    """The bytes of each file, by path.

    Args:  root: the folder that paths start from.
    Raises: ReshardError[source-unreadable].
    """
    out: dict[str, bytes] = {}
    for path in paths:
        try:
            out[path] = (Path(root) / path).read_bytes()
        except OSError as error:
            raise source_error(
                "source-unreadable",
                f"{Path(root) / path} cannot be read",
                notes=[error.strerror or str(error)],
                helps=["check its name and its permissions"],
            ) from None
    return out
