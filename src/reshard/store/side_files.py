"""The small files of a source that go along as they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reshard.plan.catalog import Catalog
from reshard.store.regular_file import read_file

MAX_NBYTES = 1 << 28
"""Of each."""


def read_side_files(catalog: Catalog, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """The bytes of side files, by the names under which they go along.

    Args:  names: which; all by default.
    Raises: ReshardError[source-unreadable].
    """
    return {
        name: read_file(Path(catalog.root) / catalog.side_files[name], MAX_NBYTES)
        for name in (catalog.side_files if names is None else names)
    }
