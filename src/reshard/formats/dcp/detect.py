"""Whether a folder is a PyTorch distributed checkpoint."""

from __future__ import annotations

from pathlib import Path


def detect(path: Path) -> bool:
    """Whether a folder holds `.metadata` (its own, or those of accelerate's two folders)."""
    if not path.is_dir() or (path / "metadata.json").exists():
        return False
    if (path / ".metadata").exists() or (path / ".metadata.tmp").exists():
        return True
    return bool(dcp_folders(path))


def dcp_folders(path: Path) -> tuple[Path, ...]:
    """The folders that together are the checkpoint: `path` itself, or accelerate's two.

    Source: accelerate/utils/fsdp_utils.py `save_fsdp_model`, `save_fsdp_optimizer` (1.15).
    """
    if (path / ".metadata").exists():
        return (path,)
    found = []
    for pattern in ("pytorch_model_fsdp_*", "optimizer_*"):
        found += sorted(p for p in path.glob(pattern) if (p / ".metadata").exists())
    return tuple(found)
