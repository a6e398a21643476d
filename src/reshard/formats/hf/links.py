"""Files of a folder that may be links, as in the cache of the Hugging Face hub, but not out of it.

Source: huggingface_hub/file_download.py: `snapshots/REVISION/NAME` links to `blobs/DIGEST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reshard.errors import source_error
from reshard.plan.catalog import SourceFile
from reshard.store.source import LocalSource

_SHOWN = 5


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
