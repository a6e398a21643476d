"""Is this DeepSpeed's universal form?"""

from __future__ import annotations

from pathlib import Path

from reshard.formats.deepspeed.files import is_universal


def detect(path: Path) -> bool:
    """Whether a folder is a universal checkpoint of DeepSpeed, or holds such alone."""
    return path.is_dir() and is_universal(path)
