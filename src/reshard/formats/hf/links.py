"""Files of a folder that may be links, as in the cache of the Hugging Face hub, but not out of it.

Source: huggingface_hub/file_download.py: `snapshots/REVISION/NAME` links to `blobs/DIGEST`.
"""

from __future__ import annotations

from pathlib import Path

from reshard.errors import source_error
from reshard.plan.catalog import SourceFile
from reshard.storage.links import refuse_outside


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
