"""Whether a folder is a PyTorch distributed checkpoint."""

from __future__ import annotations

from pathlib import Path

from reshard.formats.dcp.folders import find, is_incomplete, steps


def detect(path: Path) -> bool:
    """Whether a folder is one, was to become one, or holds those of several steps."""
    if not path.is_dir() or (path / "metadata.json").exists():
        return False
    return find(path) is not None or is_incomplete(path) or bool(steps(path))
