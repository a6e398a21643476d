"""The `config.json` of a model, where a file of that name is one.

It goes along with a checkpoint of any kind, so that the way back to transformers finds every key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.models.transformers import FACTS
from reshard.plan.catalog import Catalog
from reshard.storage.kept import encode
from reshard.store.regular_file import read_regular
from reshard.store.side_files import read_side_files
from reshard.store.source import LocalSource

CONFIG = "config.json"
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
        return parse_config(read_regular(path, _MAX_NBYTES))
    except OSError:
        return None


def load_config(source: LocalSource, name: str, help_text: str) -> dict[str, object]:
    """The object that a file of the configuration holds, as tagged JSON.

    Args:  help_text: what to do where it is none.
    Raises: ReshardError[bad-config].
    """
    try:
        value = json.loads(source.read(name, _MAX_NBYTES))
        why = "" if isinstance(value, dict) else "it is no JSON object"
    except RecursionError:
        why = "it is nested too deep"
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why:
        raise bad_config(source.root / name, why, help_text)
    tagged = encode(value, lambda ref: ref)
    assert isinstance(tagged, dict)
    return tagged


def bad_config(path: Path, why: str, help_text: str) -> ReshardError:
    """The error for a file that is not what its name says."""
    return source_error(
        "bad-config",
        f"{path} is not the configuration of a model",
        notes=[why],
        helps=[help_text],
    )


def parse_config(data: bytes) -> Mapping[str, object] | None:
    """The same, of the bytes of a file."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not is_model_config(value):
        return None
    tagged = encode(value, lambda ref: ref)
    assert isinstance(tagged, dict)
    return tagged


def config_bytes(catalog: Catalog) -> bytes | None:
    """The file that goes along with a source; None if there is none, or it is something else.

    Raises: ReshardError[source-unreadable].
    """
    if CONFIG not in catalog.side_files:
        return None
    data = read_side_files(catalog, (CONFIG,))[CONFIG]
    return None if parse_config(data) is None else data


def stated_config(catalog: Catalog) -> Mapping[str, object] | None:
    """What the file says, as tagged JSON.

    Raises: ReshardError[source-unreadable].
    """
    data = config_bytes(catalog)
    return None if data is None else parse_config(data)


def known_facts(catalog: Catalog) -> Mapping[str, object]:
    """The configuration of a model in transformers' words, and what the framework that trained it
    says in its own.

    Raises: ReshardError[source-unreadable].
    """
    config = catalog.config or {}
    words = config.get(FACTS)
    stated = stated_config(catalog) or {k: v for k, v in config.items() if k != FACTS}
    return {**stated, **(words if isinstance(words, Mapping) else {})}
