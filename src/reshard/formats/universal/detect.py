"""Whether a folder is a universal checkpoint."""

from __future__ import annotations

import contextlib
from pathlib import Path

from reshard.formats.universal import LAYOUT, MANIFEST
from reshard.formats.universal.manifest import FORMAT
from reshard.storage.index import SUFFIX
from reshard.store.source import LocalSource

_MARK_NBYTES = 200


def detect(path: Path) -> bool:
    """Whether a folder looks like a universal checkpoint, or like one without its manifest."""
    source = LocalSource(path)
    with contextlib.suppress(OSError):
        if FORMAT.encode("ascii") in source.pread(MANIFEST, 0, _MARK_NBYTES):
            return True
    return source.has(LAYOUT) and any(name.endswith(SUFFIX) for name in source.files())
