"""Whether a folder is a PyTorch distributed checkpoint."""

from __future__ import annotations

from pathlib import Path

from reshard.formats.dcp.folders import find, has_weights, steps, unfinished
from reshard.formats.steps import TRACKER, is_of_parts, is_tracked_by_another
from reshard.store.source import LocalSource


def detect(path: Path) -> bool:
    """Whether a folder is one, was to become one, or holds those of several steps."""
    if not path.is_dir() or LocalSource(path).has("metadata.json") or _is_of_megatron(path):
        return False
    if find(path) is not None or unfinished(path) is not None:
        return True
    # A folder with weights is a model itself, as transformers saves it beside its steps.
    return not has_weights(path) and bool(steps(path))


def _is_of_megatron(path: Path) -> bool:
    """Whether what a folder holds is Megatron's, in whichever of its forms."""
    if LocalSource(path).has(TRACKER):
        return not is_tracked_by_another(path)
    return LocalSource(path.absolute().parent).has(TRACKER) and not is_of_parts(path)
