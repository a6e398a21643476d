"""Whether a folder is a Hugging Face model."""

from __future__ import annotations

import re
from pathlib import Path

from reshard.formats.hf.folder import snapshot_of
from reshard.run.states import MASTER, MOMENTS, STEP
from reshard.storage.index import SUFFIX
from reshard.store.source import LocalSource

_WEIGHTS = re.compile(
    r".+\.safetensors(\.index\.json)?|adapter_model\.bin"
    r"|pytorch_model(\.bin(\.index\.json)?|-[0-9]+-of-[0-9]+\.bin)"
)
_OF_STATES = (MASTER, *MOMENTS, STEP)


def detect(path: Path) -> bool:
    """Whether a folder holds the weights of a model, by the names in it; no file is opened.

    Sets of optimizer states beside them are what is left of a universal checkpoint.
    """
    path = snapshot_of(path)
    source = LocalSource(path)
    if is_torn_universal(path):
        return False
    return any(map(_WEIGHTS.fullmatch, (*source.files(), *source.folders())))


def is_torn_universal(path: Path) -> bool:
    """Whether a folder has lost what makes a universal checkpoint of it."""
    source = LocalSource(path)
    return any(source.has(f"{stem}{SUFFIX}") for stem in (*_OF_STATES, "extra/tensors"))
