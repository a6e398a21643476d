"""The `config.json` of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.hf import CONFIG
from reshard.formats.hf.links import known_file
from reshard.storage.kept import encode
from reshard.store.regular_file import FileTooLargeError
from reshard.store.source import LocalSource

MAX_NBYTES = 64 << 20


def read_config(root: Path, name: str = CONFIG) -> Mapping[str, object] | None:
    """The configuration as tagged JSON (an infinity is `{"$float": "inf"}`); None without a file.

    Args:  name: of the file.
    Raises: ReshardError[bad-config | outside-link].
    """
    source = LocalSource(root)
    if name not in source.files():
        return None
    known_file(root, name, "the folder")
    path = root / name
    try:
        value = json.loads(source.read(name, MAX_NBYTES))
    except (ValueError, RecursionError, FileTooLargeError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise _bad(path, why) from None
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from None
    if not isinstance(value, dict):
        raise _bad(path, "it is no JSON object")
    tagged = encode(value, lambda ref: ref)
    assert isinstance(tagged, dict)
    return tagged


def _bad(path: Path, why: str) -> Exception:
    return source_error(
        "bad-config",
        f"{path} is not the configuration of a model",
        notes=[why],
        helps=["copy it again from where the model came from"],
    )
