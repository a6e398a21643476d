"""Whether a folder is a Hugging Face model."""

from __future__ import annotations

import re
from pathlib import Path

from reshard.formats.hf.hub_cache import snapshot_of
from reshard.storage.index import SUFFIX

_WEIGHTS = re.compile(
    r".+\.safetensors(\.index\.json)?|adapter_model\.bin"
    r"|pytorch_model(\.bin(\.index\.json)?|-[0-9]+-of-[0-9]+\.bin)"
)
_OF_STATES = ("master", "exp_avg", "exp_avg_sq", "step")


def detect(path: Path) -> bool:
    """Whether a folder holds the weights of a model, by the names in it; no file is opened.

    Sets of optimizer states beside them are what is left of a universal checkpoint.
    """
    path = snapshot_of(path)
    if not path.is_dir() or is_torn_universal(path):
        return False
    return any(_WEIGHTS.fullmatch(item.name) for item in path.iterdir())


def is_torn_universal(path: Path) -> bool:
    """Whether a folder has lost what makes a universal checkpoint of it."""
    return any((path / f"{state}{SUFFIX}").is_file() for state in _OF_STATES) or (
        (path / "extra").is_dir() and (path / f"extra/tensors{SUFFIX}").is_file()
    )
