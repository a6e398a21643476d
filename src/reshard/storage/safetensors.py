"""The safetensors file format: its header, read strictly and laid out deterministically.

A header counts the numbers of F4, and two of them are one element here (see `DType`).

Source: the safetensors README, section Format; safetensors 0.8, src/tensor.rs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NoReturn

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.storage.bounded_json import load_bounded
from reshard.store.regular_file import open_regular, unreadable

MAX_HEADER_NBYTES = 100_000_000
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a file; `byte_offset` is absolute."""

    dtype: DType
    shape: tuple[int, ...]
    byte_offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a file says about itself.

    Args:  metadata: its `__metadata__`.  tensors: by name, as listed.  nbytes: of the whole file.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]
    nbytes: int


class _Fault(Exception):  # noqa: N818 - never leaves this module
    pass


def read_header(
    path: str | os.PathLike[str], byte_offset: int = 0, nbytes: int | None = None
) -> SafetensorsHeader:
    """Read and check the header of a file, or of one that lies within another.

    Raises: ReshardError[bad-safetensors | source-unreadable].
    """
    where = os.fspath(path)
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size - byte_offset if nbytes is None else nbytes
            file.seek(byte_offset)
            raw = file.read(8)
            length = int.from_bytes(raw, "little")
            if len(raw) < 8 or size < 8:
                _fail(f"it has {size} bytes; a header needs 8 and more")
            if length > MAX_HEADER_NBYTES or 8 + length > size:
                _fail(f"its header would have {length} bytes, the file has {size}")
            return _parse(file.read(length), size, byte_offset)
    except _Fault as fault:
        raise source_error(
            "bad-safetensors",
            f"{where} is not a valid safetensors file",
            notes=[str(fault)],
            helps=["the file is damaged or incomplete; copy it again"],
        ) from None
    except OSError as error:
        raise unreadable(where, error) from None


def _parse(raw: bytes, size: int, base: int) -> SafetensorsHeader:
    try:
        root = load_bounded(raw)
    except ValueError as error:
        _fail(f"its header is not JSON: {error}")
    if not isinstance(root, dict) or not raw.startswith(b"{"):
        _fail("its header is not a JSON object")
    metadata = root.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _fail("its `__metadata__` is not of strings")
    data_at = 8 + len(raw)
    tensors: dict[str, StoredTensor] = {}
    for name, entry in root.items():
        tensors[name] = _entry(name, entry, size - data_at, base + data_at)
    end = 0
    for name, item in sorted(tensors.items(), key=lambda kv: (kv[1].byte_offset, kv[1].nbytes)):
        start = item.byte_offset - base - data_at
        if start != end:
            _fail(f"`{name}` begins at byte {start} of the data, {end} is next")
        end = start + item.nbytes
    if end != size - data_at:
        _fail(f"its tensors take {end} bytes, {size - data_at} follow the header")
    return SafetensorsHeader(metadata, tensors, size)


def _entry(name: str, entry: object, data_nbytes: int, data_at: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _fail(f"the entry of `{name}` is not an object of `dtype`, `shape`, and `data_offsets`")
    kind = entry.get("dtype")
    if not isinstance(kind, str) or kind not in set(DType):
        _fail(f"`{name}` has the element type `{kind}`, which is not known")
    shape = _counts(name, entry.get("shape"))
    offsets = _counts(name, entry.get("data_offsets"))
    if len(offsets) != 2:
        _fail(f"`{name}` has {len(offsets)} offsets, not 2")
    dtype = DType(kind)
    if dtype == DType.F4:
        if not shape or shape[-1] % 2:
            _fail(f"`{name}` has shape {shape} in F4, which is not a whole number of bytes")
        shape[-1] //= 2
    start, stop = offsets
    if not 0 <= start <= stop <= data_nbytes:
        _fail(f"`{name}` lies at bytes {start} to {stop} of {data_nbytes}")
    expected = prod(shape) * dtype.itemsize
    if stop - start != expected:
        _fail(f"`{name}` has {stop - start} bytes, {dtype} of shape {list(shape)} takes {expected}")
    return StoredTensor(dtype, tuple(shape), data_at + start, expected)


def _counts(name: str, value: object) -> list[int]:
    out = [n for n in value if isinstance(n, int)] if isinstance(value, list) else None
    if out is None or out != value or any(isinstance(n, bool) or n < 0 for n in out):
        _fail(f"`{name}` has a shape or offsets that are not of integers")
    return out


def _fail(why: str) -> NoReturn:
    raise _Fault(why)


def layout_header(
    tensors: Mapping[str, tuple[DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """Lay out a new file: tensors by descending element size, then in the order given.

    Args:  tensors: dtype and shape by name.
    Returns: the bytes before the data, a multiple of 64; the absolute byte offset of every tensor;
             the bytes of the whole file.
    """
    order = sorted(tensors, key=lambda name: -tensors[name][0].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at: dict[str, int] = {}
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        nbytes = prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": str(dtype),
            "shape": written_shape(dtype, shape),
            "data_offsets": [end, end + nbytes],
        }
        at[name] = end
        end += nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-(8 + len(raw)) % _ALIGNMENT)
    head = len(raw).to_bytes(8, "little") + raw
    return head, {name: len(head) + start for name, start in at.items()}, len(head) + end


def written_shape(dtype: DType, shape: tuple[int, ...]) -> list[int]:
    """A shape as a header has it."""
    if dtype == DType.F4:
        return [*shape[:-1], 2 * shape[-1]] if shape else [2]
    return list(shape)
