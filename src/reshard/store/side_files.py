"""The small files of a source that go along as they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reshard.plan.catalog import Catalog
from reshard.store.regular_file import FileTooLargeError, read_regular, unreadable

MAX_NBYTES = 1 << 28
"""Of each."""


def read_side_files(catalog: Catalog, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """The bytes of side files, by the names under which they go along.

    Args:  names: which; all by default.
    Raises: ReshardError[source-unreadable].
    """
    out: dict[str, bytes] = {}
    for name in catalog.side_files if names is None else names:
        path = Path(catalog.root) / catalog.side_files[name]
        try:
            out[name] = read_regular(path, MAX_NBYTES)
        except (OSError, FileTooLargeError) as error:
            raise unreadable(path, error) from None
    return out
