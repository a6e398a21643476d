"""Safetensors files, written without the library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def save(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> Path:
    """Write a file.

    Args:  tensors: element type, shape and bytes by name.
    Returns: the folder of the file, which is made.
    """
    header: dict[str, object] = {}
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
