"""Distributed checkpoints made by hand: every writer's classes, versions, and faults.

Tensors hold their own index.  Blobs are zip files of the standard library, not of the product.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from reshard.storage.inert import Global, Record, Size
from reshard.storage.pickle_writer import Persistent, write_pickle

METADATA = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"

Box = tuple[tuple[int, ...], tuple[int, ...]]

_STORAGES = {
    "float32": "FloatStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
}


def counted(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    """An array whose elements are their own index."""
    return np.arange(prod(shape), dtype=dtype).reshape(shape)


def tensor_pickle(array: np.ndarray[Any, Any], strides: tuple[int, ...] | None = None) -> bytes:
    """The pickle of a tensor that torch writes; its bytes are storage `0`."""
    steps, step = [], 1
    for size in reversed(array.shape):
        steps.append(step)
        step *= size
    kind = Global("torch", _STORAGES[str(array.dtype)])
    storage = Persistent(("storage", kind, "0", "cpu", array.size))
    args = (storage, 0, array.shape, strides or tuple(reversed(steps)), False)
    hooks = Record("collections", "OrderedDict", ())
    return write_pickle(Record("torch._utils", "_rebuild_tensor_v2", (*args, hooks)))


def blob(pickled: bytes, data: bytes | None = None, *, archive: str = "archive") -> bytes:
    """A file of `torch.save`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
        packed.writestr(f"{archive}/data.pkl", pickled)
        packed.writestr(f"{archive}/byteorder", "little")
        if data is not None:
            packed.writestr(f"{archive}/data/0", data)
        packed.writestr(f"{archive}/version", "3\n")
    return out.getvalue()


def made(module: str, name: str, **attributes: object) -> Record:
    """An object whose class is only named."""
    return Record(module, name, (), "newobj", [attributes])


@dataclass
class Forge:
    """One folder that is to be written.

    Args:  metadata, storage: the modules of the classes in `.metadata`.
           version: None where the writer knew none.  raw: bytes without zip files around them.
           rank: which wrote it.  properties: the state of TensorProperties, `tuple` or `dict`.
    """

    folder: Path
    metadata: str = METADATA
    storage: str = FILESYSTEM
    version: str | None = "1.0.0"
    raw: bool = False
    rank: int = 0
    properties: str = "tuple"
    entries: dict[str, Record] = field(default_factory=dict)
    places: dict[Record, Record] = field(default_factory=dict)
    apart: dict[Record, bytes | None] = field(default_factory=dict)
    paths: dict[str, tuple[object, ...]] = field(default_factory=dict)
    files: dict[str, bytearray] = field(default_factory=dict)

    def tensor(
        self,
        name: str,
        array: np.ndarray[Any, Any],
        boxes: Sequence[Box] | None = None,
        *,
        path: tuple[object, ...] | None = None,
        turned: bool = False,
        subclass: Global | None = None,
        **storage: object,
    ) -> Forge:
        """Add a tensor; every box goes into a file of its own."""
        chunks = []
        for index, (lo, size) in enumerate(boxes or [((0,) * array.ndim, array.shape)]):
            part = array[tuple(slice(a, a + n) for a, n in zip(lo, size, strict=True))]
            strides = (1, part.shape[0]) if turned else None
            data = (part.T if turned else part).tobytes()
            pickled = tensor_pickle(part, strides)
            if subclass is not None:
                rebuilt = Record("torch._utils", "_rebuild_wrapper_subclass", ())
                args = (rebuilt, subclass, (), {})
                pickled = write_pickle(Record("torch._tensor", "_rebuild_from_type_v2", args))
                data = b""
            key = made(METADATA, "MetadataIndex", fqn=name, offset=Size(lo), index=index)
            stored = data if self.raw else blob(pickled, data)
            self._place(key, stored, f"__{self.rank}_{index}.distcp", storage)
            self.apart[key] = pickled
            chunks.append(
                made(METADATA, "ChunkStorageMetadata", offsets=Size(lo), sizes=Size(size))
            )
        dtype = Global("torch", str(array.dtype))
        layout = Record("torch.serialization", "_get_layout", ("torch.strided",))
        memory = Record(METADATA, "_MEM_FORMAT_ENCODING", (0,))
        state: object = (dtype, layout, False, memory, False)
        if self.properties == "dict":
            state = {"dtype": dtype, "layout": layout, "requires_grad": False}
        self.entries[name] = made(
            METADATA,
            "TensorStorageMetadata",
            properties=Record(METADATA, "TensorProperties", (), "newobj", [state]),
            size=Size(array.shape),
            chunks=chunks,
        )
        if path is not None:
            self.paths[name] = path
        return self

    def object(self, name: str, value: object, *, path: tuple[object, ...] | None = None) -> Forge:
        """Add an object."""
        key = made(METADATA, "MetadataIndex", fqn=name)
        self._place(key, blob(write_pickle(value)), f"__{self.rank}_0.distcp", {})
        self.apart[key] = None
        self.entries[name] = made(METADATA, "BytesStorageMetadata")
        if path is not None:
            self.paths[name] = path
        return self

    def _place(self, key: Record, data: bytes, file: str, storage: Mapping[str, object]) -> None:
        held = self.files.setdefault(file, bytearray())
        where = {"relative_path": file, "offset": len(held), "length": len(data), **storage}
        held += data
        self.places[key] = made(self.storage, "_StorageInfo", **where)

    def write(self, name: str = ".metadata", **other: object) -> Path:
        """Write all files.

        Args:  other: attributes of the root, instead of what they would be.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, data in self.files.items():
            (self.folder / file).write_bytes(data)
        attributes: dict[str, object] = {
            "state_dict_metadata": self.entries,
            "planner_data": self.paths or None,
            "storage_data": self.places,
        }
        if self.version is not None:
            attributes["version"] = self.version
        if self.raw:
            attributes["all_tensor_metadata"] = self.apart
        root = made(self.metadata, "Metadata", **attributes | other)
        (self.folder / name).write_bytes(write_pickle(root))
        return self.folder
