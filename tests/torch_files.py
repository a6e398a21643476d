"""Torch files from arrays, for sources that hold them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.storage.torch_file import TensorRef, open_torch_file, read_small, walk
from reshard.storage.torch_writer import NewStorage, NewTensor, plan_torch_file


def save(path: Path, root: object, data: Mapping[NewStorage, bytes]) -> None:
    """Write a file.

    Args:  root: the tree, with tensors over storages.  data: the bytes of each storage.
    """
    image = plan_torch_file(root, path.stem)
    out = bytearray(image.nbytes)
    for at, raw in image.head:
        out[at : at + len(raw)] = raw
    crcs = {}
    for slot in image.storages:
        raw = data[slot.storage]
        out[slot.byte_offset : slot.byte_offset + slot.nbytes] = raw
        crcs[slot.key] = zlib.crc32(raw)
    for at, raw in image.tail(crcs):
        out[at : at + len(raw)] = raw
    path.write_bytes(bytes(out))


class Tensor:
    """A tensor that is to be written again."""

    def __init__(self, dtype: DType, shape: tuple[int, ...], data: bytes) -> None:
        self.dtype, self.shape, self.data = dtype, shape, data


def loaded(path: Path) -> Any:
    """The tree of a file of `torch.save`, with the bytes of its tensors."""

    def value(item: Any) -> Any:
        if isinstance(item, TensorRef):
            return Tensor(item.dtype, item.shape, read_small(item))
        if isinstance(item, dict):
            return {key: value(inner) for key, inner in item.items()}
        if type(item) in (list, tuple):
            return type(item)(map(value, item))
        return item

    return value(open_torch_file(path).root)


def saved(root: Any, stem: str = "archive") -> bytes:
    """A file of `torch.save` of a tree."""
    data: dict[int, bytes] = {}
    keep: list[object] = []

    def value(item: Any) -> Any:
        if isinstance(item, Tensor):
            storage = NewStorage(item.dtype, prod(item.shape))
            data[id(storage)] = item.data
            keep.append(storage)
            return NewTensor(storage, 0, item.shape, row_major(item.shape))
        if isinstance(item, dict):
            return {key: value(inner) for key, inner in item.items()}
        if type(item) in (list, tuple):
            return type(item)(map(value, item))
        return item

    image = plan_torch_file(value(root), stem)
    out = bytearray(image.nbytes)
    for at, raw in image.head:
        out[at : at + len(raw)] = raw
    crcs = {}
    for slot in image.storages:
        raw = data[id(slot.storage)]
        out[slot.byte_offset : slot.byte_offset + len(raw)] = raw
        crcs[slot.key] = zlib.crc32(raw)
    for at, raw in image.tail(crcs):
        out[at : at + len(raw)] = raw
    return bytes(out)


def saved_legacy(root: Any, folder: Path) -> bytes:
    """A file of `torch.save` of a tree, in the format before torch 1.6.

    Args:  folder: for a file that is not kept.
    """
    raw = saved(root)
    path = folder / "archive.tmp"
    path.write_bytes(raw)
    counts: dict[str, int] = {}
    walk(
        open_torch_file(path).root,
        lambda _, ref: counts.update({ref.storage_key: ref.storage_numel}),
    )
    path.unlink()
    archive = zipfile.ZipFile(io.BytesIO(raw))
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    out = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, machine))
    out += archive.read("archive/data.pkl") + pickle.dumps([*counts], 2)
    for key, count in counts.items():
        out += struct.pack("<q", count) + archive.read(f"archive/data/{key}")
    return out
