"""Small model folders, written by the format's own rules and not by reshard."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]

KINDS = {"float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def counted(*shape: int, start: int = 0) -> npt.NDArray[Any]:
    """A tensor filled with the index of each element."""
    size = int(np.prod(shape, dtype=np.int64))
    return np.arange(start, start + size, dtype=np.float32).reshape(shape)


def safetensors(
    tensors: Tensors,
    metadata: Mapping[str, str] | None = None,
    kinds: Mapping[str, tuple[str, list[int]]] | None = None,
) -> bytes:
    """The bytes of a file.

    Args:  kinds: type and shape that the header states, where they are not those of the array.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    data = b""
    for name, value in tensors.items():
        dtype, shape = (kinds or {}).get(name, (KINDS[str(value.dtype)], list(value.shape)))
        raw = value.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return framed(json.dumps(header), data)


def framed(header: str, data: bytes = b"") -> bytes:
    """A header text and what follows it."""
    raw = header.encode()
    return struct.pack("<Q", len(raw)) + raw + data


def sharded(
    folder: Path, files: Mapping[str, Tensors], weight_map: Mapping[str, str] | None = None
) -> Path:
    """A set of files with its index."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in files.items():
        (folder / file).write_bytes(safetensors(tensors))
    named = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": dict(weight_map or named)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def torch_shard(
    folder: Path, rank: int, file: int, total: int, boxes: Mapping[str, tuple[list[int], Any]]
) -> Path:
    """A file of torch's distributed writer: boxes of tensors, each with where it begins."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {name: {"saved_offsets": at} for name, (at, _) in boxes.items()}
    metadata = {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"}
    path = folder / f"shard-{rank:05}-model-{file:05}-of-{total:05}.safetensors"
    path.write_bytes(safetensors({name: value for name, (_, value) in boxes.items()}, metadata))
    return path
