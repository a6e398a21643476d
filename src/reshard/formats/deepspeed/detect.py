"""Is this a DeepSpeed checkpoint?"""

from __future__ import annotations

from pathlib import Path

from reshard.formats.deepspeed.folder import is_step_folder
from reshard.formats.deepspeed.step import LATEST, is_universal, tags


def detect(path: Path) -> bool:
    """Whether a folder is a checkpoint of DeepSpeed, by the names in it; no file is opened."""
    if not path.is_dir() or is_universal(path):
        return False
    if is_step_folder(path):
        return True
    if tags(path):
        return True
    tracker = path / LATEST
    return tracker.is_file() and any(path.glob("zero_to_fp32.py"))
