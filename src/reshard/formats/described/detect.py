"""Whether a folder is one that a description of ours is of."""

from __future__ import annotations

from pathlib import Path


def detect(path: Path) -> bool:
    """Whether it has the files of a description; that of any torch file is another format."""
    from reshard.formats.described.places import has_described

    return path.is_dir() and has_described(path)
