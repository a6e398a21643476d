"""The `config.json` of a model, where a file of that name is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from reshard.storage.objects import to_json
from reshard.storage.regular_file import FileTooLargeError, read_regular

_MAX_NBYTES = 64 << 20
_SECTIONS = ("model", "optim", "optimizer", "trainer", "train_module", "data_loader")
"""Of a run's settings; some trainers write these into a file of that name, too."""


def is_model_config(value: object) -> bool:
    """Whether the value of a file `config.json` is the configuration of a model."""
    if not isinstance(value, dict):
        return False
    return not any(isinstance(value.get(section), dict) for section in _SECTIONS)


def model_config_of(path: Path) -> Mapping[str, object] | None:
    """The configuration as tagged JSON; None if the file is something else."""
    try:
        value = json.loads(read_regular(path, _MAX_NBYTES))
    except (OSError, ValueError, RecursionError, FileTooLargeError):
        return None
    if not is_model_config(value):
        return None
    tagged = to_json(value, lambda ref: ref)
    assert isinstance(tagged, dict)
    return tagged
