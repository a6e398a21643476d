"""Whether a folder is a universal checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from reshard.formats.universal import LAYOUT, MANIFEST
from reshard.formats.universal.manifest import FORMAT
from reshard.storage.index import SUFFIX
from reshard.storage.regular_file import open_regular

_MARK_NBYTES = 200


def detect(path: Path) -> bool:
    """Whether a folder looks like a universal checkpoint, or like one without its manifest."""
    try:
        with os.fdopen(open_regular(path / MANIFEST), "rb") as file:
            if FORMAT.encode("ascii") in file.read(_MARK_NBYTES):
                return True
    except OSError:
        pass
    if not (path / LAYOUT).is_file():
        return False
    return any(entry.name.endswith(SUFFIX) for entry in path.iterdir())
