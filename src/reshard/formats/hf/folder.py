"""The folder of a model: its files, which may be links as in the cache of the Hugging Face hub.

Source: huggingface_hub/file_download.py: `snapshots/REVISION/NAME` links to `blobs/DIGEST`, and
`refs/BRANCH` holds the revision of `snapshots/REVISION`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reshard.errors import source_error
from reshard.plan.catalog import SourceFile
from reshard.store.source import LocalSource

_SHOWN = 5
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


def known_files(root: Path, names: Sequence[str], named_by: str) -> tuple[SourceFile, ...]:
    """The files of a set as they are now.

    Raises: ReshardError[missing-file | outside-link].
    """
    source = LocalSource(root)
    missing = [name for name in names if not source.has(name)]
    if len(missing) < 2:
        return tuple(known_file(root, name, named_by) for name in names)
    more = f", and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    examples = ", ".join(f"`{name}`" for name in missing[:_SHOWN])
    raise source_error(
        "missing-file",
        f"{root} lacks {len(missing):,} of the {len(names):,} files that {named_by} names",
        notes=[f"missing: {examples}{more}"],
        helps=["copy the missing files from where the model came from"],
    )


def known_file(root: Path, name: str, named_by: str) -> SourceFile:
    """A file as it is now.

    Args:  name: relative to the folder.  named_by: what says that it is there, for messages.
    Raises: ReshardError[missing-file | outside-link].
    """
    return LocalSource(root).need(name, named_by, "copy it from where the model came from")
