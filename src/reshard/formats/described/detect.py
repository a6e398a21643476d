"""Whether a folder is one that a description of ours is of."""

from __future__ import annotations

from pathlib import Path


def detect(path: Path) -> bool:
    """Whether it has the files of a description; that of any torch file is another format."""
    from reshard.formats.described.shipped import find_descriptions

    return path.is_dir() and bool(find_descriptions(path))
