"""The index of a sharded safetensors set, as Hugging Face writes it.

Source: huggingface_hub/serialization, `StateDictSplit`; transformers/utils/hub.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.storage.bounded_json import load_bounded
from reshard.store.regular_file import FileTooLargeError, read_regular, unreadable

SUFFIX = ".safetensors.index.json"

MAX_NBYTES = 1 << 28
"""Of an index; a million tensors take less."""


@dataclass(frozen=True, slots=True)
class Index:
    """Which file holds which tensor.

    Args:  weight_map: tensor -> file name in the folder of the index.  metadata: the rest.
    """

    weight_map: Mapping[str, str]
    metadata: Mapping[str, object]


def read_index(path: Path) -> Index:
    """Read and check an index.

    Raises: ReshardError[bad-index | source-unreadable].
    """
    try:
        root = load_bounded(read_regular(path, MAX_NBYTES))
    except FileTooLargeError as error:
        raise _bad(
            path, f"it has {error.nbytes} bytes, more than the {error.limit} it may"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise _bad(path, f"it is not valid JSON: {error}") from None
    if not isinstance(root, dict) or not isinstance(root.get("weight_map"), dict):
        raise _bad(path, "it has no `weight_map`")
    metadata = root.get("metadata", {})
    if not isinstance(metadata, dict):
        raise _bad(path, "its `metadata` is not an object")
    for name, file in root["weight_map"].items():
        plain = isinstance(file, str) and file.isprintable() and Path(file).name == file
        if not plain or file in ("", ".", ".."):
            raise _bad(path, f"`{name}` is in file {file!r}, which is not a plain file name")
    return Index(root["weight_map"], metadata)


def write_index(weight_map: Mapping[str, str], metadata: Mapping[str, object]) -> bytes:
    """The bytes of an index; tensors in the order of their names."""
    root = {"metadata": dict(metadata), "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(root, indent=2, ensure_ascii=False) + "\n").encode()


def _bad(path: Path, why: str) -> ReshardError:
    return source_error(
        "bad-index",
        f"{path} is not the index of a sharded checkpoint",
        notes=[why],
        helps=["copy it again, with the files that it names"],
    )
