"""Safetensors files, written without the library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def save(
    path: Path,
    tensors: Mapping[str, tuple[str, Sequence[int], bytes]],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a file.

    Args:  tensors: element type, shape and bytes by name.
    Returns: the folder of the file, which is made.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        ends = [at, at + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": ends}
        at += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [len(text).to_bytes(8, "little"), text, *(data for _, _, data in tensors.values())]
    path.write_bytes(b"".join(content))
    return path.parent


def read(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Element type, shape and bytes by name."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: (
            item["dtype"],
            item["shape"],
            content[slice(*(start + end for end in item["data_offsets"]))],
        )
        for name, item in header.items()
    }
