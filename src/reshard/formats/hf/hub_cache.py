"""The root of a model in the cache of the Hugging Face hub: `refs/main` names the snapshot.

Source: huggingface_hub/file_download.py: `refs/BRANCH` holds the revision of `snapshots/REVISION`.
"""

from __future__ import annotations

import re
from pathlib import Path

from reshard.store.source import LocalSource

_REVISION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")
_MAX_NBYTES = 1000


def snapshot_of(path: Path) -> Path:
    """The snapshot that the root of a cached model means; else the folder itself."""
    try:
        revision = LocalSource(path).read("refs/main", _MAX_NBYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return path
    if _REVISION.fullmatch(revision) is None:
        return path
    snapshot = path / "snapshots" / revision
    return snapshot if snapshot.is_dir() and not snapshot.is_symlink() else path
