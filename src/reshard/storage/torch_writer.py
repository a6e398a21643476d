"""Lays out a file as `torch.save` writes it, without the bytes of its tensors.

What is known before the data (the pickle, small members) comes first; the headers that hold
checksums of the data come when those are known.
Source: torch/serialization.py, caffe2/serialize/inline_container.cc (2.13).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.storage.inert import Global, Record
from reshard.storage.pickle_writer import Persistent, Reduced, write_pickle
from reshard.store.digest import crc32

_ALIGNMENT = 64
_FLAGS = 0x0800  # names are UTF-8
_WIDE = 0xFFFFFFFF
_DOS_DATE = 0x21  # 1980-01-01, so that the same tensors give the same bytes

_TYPED = {
    DType.F64: "DoubleStorage",
    DType.F32: "FloatStorage",
    DType.F16: "HalfStorage",
    DType.BF16: "BFloat16Storage",
    DType.I64: "LongStorage",
    DType.I32: "IntStorage",
    DType.I16: "ShortStorage",
    DType.I8: "CharStorage",
    DType.U8: "ByteStorage",
    DType.BOOL: "BoolStorage",
    DType.C128: "ComplexDoubleStorage",
    DType.C64: "ComplexFloatStorage",
}

_UNTYPED = {
    DType.U16: "uint16",
    DType.U32: "uint32",
    DType.U64: "uint64",
    DType.F4: "float4_e2m1fn_x2",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E8M0: "float8_e8m0fnu",
    DType.F8_E4M3FNUZ: "float8_e4m3fnuz",
    DType.F8_E5M2FNUZ: "float8_e5m2fnuz",
}

_TORCH_NAMES = {
    DType.F64: "float64",
    DType.F32: "float32",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.I64: "int64",
    DType.I32: "int32",
    DType.I16: "int16",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.BOOL: "bool",
    DType.C128: "complex128",
    DType.C64: "complex64",
    **_UNTYPED,
}


def torch_dtype(dtype: DType) -> Global:
    """The global that names an element type, e.g. `torch.bfloat16`."""
    return Global("torch", _TORCH_NAMES[dtype])


@dataclass(frozen=True, slots=True, eq=False)
class NewStorage:
    """A storage that is to be written; told apart by identity."""

    dtype: DType
    numel: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class NewTensor:
    """A tensor over a storage; shape and strides in elements."""

    storage: NewStorage
    storage_offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool = False
    parameter: bool = False


@dataclass(frozen=True, slots=True)
class StorageSlot:
    """Where the bytes of a storage go.

    Args:  key: its name in the file.  byte_offset: from the beginning of the file.
    """

    storage: NewStorage
    key: str
    byte_offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member: everything about it but the checksum of a storage."""

    name: str
    header_at: int
    extra: bytes
    nbytes: int
    key: str | None
    crc: int


@dataclass(frozen=True, slots=True)
class TorchImage:
    """A file laid out.

    Args:  nbytes: of the whole file.  head: (byte offset, bytes) that do not depend on the data.
           storages: in the order of their places.
    """

    nbytes: int
    head: tuple[tuple[int, bytes], ...]
    storages: tuple[StorageSlot, ...]
    entries: tuple[_Entry, ...]
    directory_at: int

    def tail(self, crcs: Mapping[str, int]) -> tuple[tuple[int, bytes], ...]:
        """The rest: headers of the storages and the directory.

        Args:  crcs: CRC-32 of the bytes of every storage, by key.
        """
        out = []
        for entry in self.entries:
            if entry.key is not None:
                out.append((entry.header_at, _local_header(entry, crcs[entry.key])))
        out.append((self.directory_at, _directory(self.entries, self.directory_at, crcs)))
        return tuple(out)


def plan_torch_file(root: object, archive: str) -> TorchImage:
    """Lay out a file.

    Args:  root: plain values, `Global`s, `Record`s, and `NewTensor`s.
           archive: the folder within the zip file; torch takes the stem of the file's name.
    """
    pickler = _Pickler()
    data = write_pickle(root, pickler.reduce)
    layout = _Layout(archive)
    layout.small("data.pkl", data)
    layout.small(".format_version", b"1")
    layout.small(".storage_alignment", str(_ALIGNMENT).encode())
    layout.small("byteorder", b"little")
    for key, storage in enumerate(pickler.storages):
        layout.storage(str(key), storage)
    layout.small("version", b"3\n")
    layout.small(".data/serialization_id", _serialization_id(data))
    return layout.image()


class _Pickler:
    """Says how tensors are made, and numbers their storages."""

    def __init__(self) -> None:
        self.storages: list[NewStorage] = []
        self._keys: dict[int, int] = {}

    def reduce(self, value: object) -> Reduced | None:
        if not isinstance(value, NewTensor):
            return None
        hooks = Record("collections", "OrderedDict", ())
        grad = value.requires_grad and not value.parameter
        storage = value.storage
        key = self._keys.setdefault(id(storage), len(self.storages))
        if key == len(self.storages):
            self.storages.append(storage)
        typed = _TYPED.get(storage.dtype)
        kind = Global("torch", typed) if typed else Global("torch.storage", "UntypedStorage")
        numel = storage.numel if typed else storage.nbytes
        where = Persistent(("storage", kind, str(key), "cpu", numel))
        args: tuple[object, ...] = (
            where,
            value.storage_offset,
            value.shape,
            value.strides,
            grad,
            hooks,
        )
        if typed:
            call: Reduced = Global("torch._utils", "_rebuild_tensor_v2"), args
        else:
            call = Global("torch._utils", "_rebuild_tensor_v3"), (*args, torch_dtype(storage.dtype))
        if not value.parameter:
            return call
        tensor = Record(call[0].module, call[0].name, call[1])
        return Global("torch._utils", "_rebuild_parameter"), (tensor, value.requires_grad, hooks)


class _Layout:
    """Puts members one behind the other."""

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._at = 0
        self._entries: list[_Entry] = []
        self._head: list[tuple[int, bytes]] = []
        self._storages: list[StorageSlot] = []

    def small(self, name: str, data: bytes) -> None:
        entry = self._entry(name, len(data), None, crc32(data))
        header = _local_header(entry, entry.crc)
        self._head.append((entry.header_at, header + data))
        self._at = entry.header_at + len(header) + len(data)

    def storage(self, key: str, storage: NewStorage) -> None:
        entry = self._entry(f"data/{key}", storage.nbytes, key, 0)
        data_at = entry.header_at + len(_local_header(entry, 0))
        self._storages.append(StorageSlot(storage, key, data_at, storage.nbytes))
        self._at = data_at + storage.nbytes

    def _entry(self, name: str, nbytes: int, key: str | None, crc: int) -> _Entry:
        full = f"{self._archive}/{name}"
        wide = struct.pack("<2H2Q", 1, 16, nbytes, nbytes) if nbytes >= _WIDE else b""
        data_at = self._at + 30 + len(full.encode()) + len(wide) + 4
        pad = -data_at % _ALIGNMENT
        extra = wide + struct.pack("<2s H", b"FB", pad) + b"Z" * pad
        entry = _Entry(full, self._at, extra, nbytes, key, crc)
        self._entries.append(entry)
        return entry

    def image(self) -> TorchImage:
        none = {entry.key: 0 for entry in self._entries if entry.key is not None}
        size = len(_directory(tuple(self._entries), self._at, none))
        return TorchImage(
            self._at + size,
            _joined(self._head),
            tuple(self._storages),
            tuple(self._entries),
            self._at,
        )


def _joined(pieces: list[tuple[int, bytes]]) -> tuple[tuple[int, bytes], ...]:
    """Neighbouring bytes in one piece."""
    out: list[tuple[int, list[bytes]]] = []
    end = -1
    for at, data in pieces:
        if at == end:
            out[-1][1].append(data)
        else:
            out.append((at, [data]))
        end = at + len(data)
    return tuple((at, b"".join(found)) for at, found in out)


def _local_header(entry: _Entry, crc: int) -> bytes:
    name = entry.name.encode()
    size = min(entry.nbytes, _WIDE)
    return (
        struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            45 if size == _WIDE else 20,
            _FLAGS,
            0,
            0,
            _DOS_DATE,
            crc,
            size,
            size,
            len(name),
            len(entry.extra),
        )
        + name
        + entry.extra
    )


def _directory(entries: tuple[_Entry, ...], at: int, crcs: Mapping[str, int]) -> bytes:
    out = bytearray()
    for entry in entries:
        out += _central_header(entry, entry.crc if entry.key is None else crcs[entry.key])
    size = len(out)
    if len(entries) >= 0xFFFF or at >= _WIDE or size >= _WIDE:
        end_at = at + size
        out += struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, len(entries), len(entries), size, at
        )
        out += struct.pack("<4sLQL", b"PK\x06\x07", 0, end_at, 1)
    count = min(len(entries), 0xFFFF)
    out += struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, min(size, _WIDE), min(at, _WIDE), 0
    )
    return bytes(out)


def _central_header(entry: _Entry, crc: int) -> bytes:
    name = entry.name.encode()
    size, offset = min(entry.nbytes, _WIDE), min(entry.header_at, _WIDE)
    wide = b""
    if size == _WIDE:
        wide += struct.pack("<2Q", entry.nbytes, entry.nbytes)
    if offset == _WIDE:
        wide += struct.pack("<Q", entry.header_at)
    extra = struct.pack("<2H", 1, len(wide)) + wide if wide else b""
    version = 45 if wide else 20
    return (
        struct.pack(
            "<4s4B4H3L5H2L",
            b"PK\x01\x02",
            version,
            0,
            version,
            0,
            _FLAGS,
            0,
            0,
            _DOS_DATE,
            crc,
            size,
            size,
            len(name),
            len(extra),
            0,
            0,
            0,
            0,
            offset,
        )
        + name
        + extra
    )


def _serialization_id(data: bytes) -> bytes:
    number = int.from_bytes(hashlib.sha256(data).digest(), "big") % 10**40
    return f"{number:040d}".encode()
