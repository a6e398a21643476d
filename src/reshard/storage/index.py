"""The index of a sharded safetensors set, as Hugging Face writes it.

Source: huggingface_hub/serialization, `StateDictSplit`; transformers/utils/hub.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import ReshardError, source_error

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
        size = path.stat().st_size
        if size > MAX_NBYTES:
            raise _bad(path, f"it has {size} bytes, more than the {MAX_NBYTES} it may")
        root = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except OSError as error:
        raise source_error(
            "source-unreadable",
            f"{path} cannot be read",
            notes=[error.strerror or str(error)],
            helps=["check its name and its permissions"],
        ) from None
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"it is no sound JSON: {error}") from None
    if not isinstance(root, dict) or not isinstance(root.get("weight_map"), dict):
        raise _bad(path, "it has no `weight_map`")
    metadata = root.get("metadata", {})
    if not isinstance(metadata, dict):
        raise _bad(path, "its `metadata` is no object")
    for name, file in root["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise _bad(path, f"`{name}` is in file {file!r}, which is no plain name")
    return Index(root["weight_map"], metadata)


def write_index(weight_map: Mapping[str, str], metadata: Mapping[str, object]) -> bytes:
    """The bytes of an index; tensors in the order of their names."""
    root = {"metadata": dict(metadata), "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(root, indent=2, ensure_ascii=False) + "\n").encode()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`{twice}` is there twice")
    return out


def _bad(path: Path, why: str) -> ReshardError:
    return source_error(
        "bad-index",
        f"{path} is not the index of a sharded checkpoint",
        notes=[why],
        helps=["copy it again, with the files that it names"],
    )
