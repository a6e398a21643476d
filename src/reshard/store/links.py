"""Links of a source: they may lead about in its folder, but not out of it.

A name that a file of the source gives, followed through a link that came with it, could be any file
of the machine.

Source: huggingface_hub/file_download.py: `snapshots/REVISION/NAME` links to `blobs/DIGEST`.
"""

from __future__ import annotations

import os
from pathlib import Path

from reshard.errors import source_error


def refuse_outside(root: Path, path: Path) -> None:
    """Refuse a link that leads out of a folder, or out of its part of the hub's cache.

    Raises: ReshardError[outside-link].
    """
    base, target = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    if target.is_relative_to(base):
        return
    if base.parent.name == "snapshots" and target.is_relative_to(base.parent.parent / "blobs"):
        return
    raise source_error(
        "outside-link",
        f"{path} is a link that points outside of the folder",
        notes=[f"it leads to {target}"],
        helps=["replace the link by the file, or give the folder that contains the file"],
    )
