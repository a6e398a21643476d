"""Torch files from arrays, for sources that hold them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from reshard.storage.torch_writer import NewStorage, plan_torch_file


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
