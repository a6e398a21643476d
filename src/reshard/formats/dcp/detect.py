"""Whether a folder is a PyTorch distributed checkpoint."""

from __future__ import annotations

from pathlib import Path

from reshard.formats.dcp.folders import find, is_incomplete, steps

_MEGATRON = "latest_checkpointed_iteration.txt"


def detect(path: Path) -> bool:
    """Whether a folder is one, was to become one, or holds those of several steps."""
    if not path.is_dir() or (path / "metadata.json").exists():
        return False
    if any((folder / _MEGATRON).exists() for folder in (path, path.absolute().parent)):
        return False  # what it holds is Megatron's, in whichever of its forms
    if find(path) is not None or is_incomplete(path):
        return True
    return not _has_weights(path) and bool(steps(path))


def _has_weights(path: Path) -> bool:
    """Whether a folder is a model itself, as transformers saves it beside its steps."""
    return any(
        next(path.glob(pattern), None) is not None
        for pattern in ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")
    )
