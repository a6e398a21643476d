"""Files of a folder that may be links, as in the cache of the Hugging Face hub, but not out of it.

Source: huggingface_hub/file_download.py: `snapshots/REVISION/NAME` links to `blobs/DIGEST`.
"""

from __future__ import annotations

from pathlib import Path

from reshard.errors import source_error
from reshard.plan.catalog import SourceFile


def known_file(root: Path, name: str, named_by: str) -> SourceFile:
    """A file as it is now.

    Args:  name: relative to the folder.  named_by: what says that it is there, for messages.
    Raises: ReshardError[missing-file | outside-link].
    """
    path = root / name
    refuse_outside(root, path)
    try:
        found = path.stat()
    except OSError:
        raise source_error(
            "missing-file",
            f"{path} is missing",
            notes=[f"{named_by} names it"],
            helps=["copy the whole folder again"],
        ) from None
    return SourceFile(name, found.st_size, found.st_mtime_ns)


def refuse_outside(root: Path, path: Path) -> None:
    """Refuse a link that leads out of a folder, or out of its part of the hub's cache.

    Raises: ReshardError[outside-link].
    """
    base = root.resolve()
    target = path.resolve()
    if target.is_relative_to(base):
        return
    if base.parent.name == "snapshots" and target.is_relative_to(base.parent.parent / "blobs"):
        return
    raise source_error(
        "outside-link",
        f"{path} is a link that leads out of the folder",
        notes=[f"it leads to {target}"],
        helps=["put the file itself in its place, or give the folder that holds it"],
    )
