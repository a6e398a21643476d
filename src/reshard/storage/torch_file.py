"""A file that `torch.save` wrote: its object tree, with references where the tensors are.

Source: torch/serialization.py (zip format), torch/_utils.py (`_rebuild_*`), torch 2.13.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TypeGuard

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.storage.inert import Global, Record
from reshard.storage.legacy_torch_file import is_legacy, read_legacy
from reshard.storage.pickle_limits import PickleLimits
from reshard.storage.pickle_reader import read_pickle
from reshard.storage.pickle_values import Constructor, dtype_of_global, storage_dtype
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.window import Window
from reshard.storage.zip_directory import Member, read_zip_directory
from reshard.store.digest import crc32
from reshard.store.regular_file import open_regular, unreadable

__all__ = ["TensorRef", "TorchFile", "open_torch_file", "read_small", "walk"]

_CHUNK = 1 << 20
_SMALL_NBYTES = 1 << 20
_MAX_DIMENSIONS = 64  # torch has 64 too
_MAX_REPEATS = 1024
_MAX_REPEATED = 1 << 30
"""Bytes of an expanded tensor (stride 0) that are believed of any storage."""
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Storage:
    member: Member
    dtype: DType
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class TorchFile:
    """An opened file; only its directory and its pickle were read.

    Args:  root: the object tree.  path: of the file.
           members: by name inside of the archive's folder.  byteorder: as stated, else `little`.
           has_checksums: whether it states a checksum of each member; not before torch 1.6.
    """

    root: object
    path: str
    members: Mapping[str, Member]
    byteorder: str
    has_checksums: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Members, without the name of the archive's folder."""
        return tuple(self.members)

    def record(self, name: str) -> bytes:
        """The bytes of one member.

        Raises: ReshardError[not-a-torch-file] when there is none of that name.
        """
        member = self.members.get(name)
        if member is None:
            raise _missing(self.path, name)
        return _read(self.path, member.byte_offset, member.nbytes)

    def check_crc(self, storage_key: str) -> None:
        """Compare the bytes of one storage with the checksum that the file states.

        Raises: ReshardError[crc-mismatch].
        """
        if self.has_checksums:
            self._check(f"data/{storage_key}")

    def check_all_crcs(self, on_bytes: Callable[[int], None] | None = None) -> None:
        """Compare every member with its checksum.

        Args:  on_bytes: is told how many bytes more were read.
        Raises: ReshardError[crc-mismatch].
        """
        for name in self.members if self.has_checksums else ():
            self._check(name, on_bytes)

    def _check(self, name: str, on_bytes: Callable[[int], None] | None = None) -> None:
        member = self.members.get(name)
        if member is None:
            raise _missing(self.path, name)
        crc = 0
        try:
            fd = open_regular(self.path)
        except OSError as error:
            raise unreadable(self.path, error) from None
        try:
            for at in range(0, member.nbytes, _CHUNK):
                count = min(_CHUNK, member.nbytes - at)
                crc = crc32(os.pread(fd, count, member.byte_offset + at), crc)
                if on_bytes is not None:
                    on_bytes(count)
        except OSError as error:
            raise unreadable(self.path, error) from None
        finally:
            os.close(fd)
        if crc != member.crc:
            raise source_error(
                "crc-mismatch",
                f"the bytes of `{name}` in {self.path} do not match their checksum",
                notes=[f"checksum {crc:08x}, the file states {member.crc:08x}"],
                helps=["the file was damaged; copy it again, or go back to an earlier checkpoint"],
            )


KnownTensors = dict[bytes, TensorRef]
"""Tensors by the pickle that says how they are made; the same pickle makes the same tensor again,
elsewhere."""

_MOST_KNOWN = 4096


def open_torch_file(
    path: str | os.PathLike[str],
    byte_offset: int = 0,
    nbytes: int | None = None,
    known: KnownTensors | None = None,
) -> TorchFile:
    """Read the directory and the pickle of a file; tensors stay where they are.

    Args:  byte_offset, nbytes: the part of the file that `torch.save` wrote; all of it by default.
           known: tensors of other files, of many that hold one tensor each; new ones are added.
    Raises: ReshardError[source-unreadable | not-a-torch-file | legacy-torch-file | truncated |
            unsupported-zip | bad-zip | big-endian | bad-pickle | tensor-out-of-bounds].
    """
    where = os.fspath(path)
    try:
        fd = open_regular(where)
    except OSError as error:
        raise unreadable(where, error) from None
    try:
        size = os.fstat(fd).st_size
        span = size - byte_offset if nbytes is None else nbytes
        if byte_offset < 0 or span < 0 or byte_offset + span > size:
            raise source_error(
                "truncated",
                f"{where} is shorter than its index says",
                notes=[
                    f"bytes {byte_offset} to {byte_offset + span} are needed, but it has {size}"
                ],
                helps=["the file was not written or copied completely; copy it again"],
            )
        return _open(Window(fd), where, byte_offset, span, known)
    except OSError as error:
        raise unreadable(where, error) from None
    finally:
        os.close(fd)


def _open(
    file: Window, where: str, byte_offset: int, nbytes: int, known: KnownTensors | None
) -> TorchFile:
    head = file.pread(min(nbytes, 512), byte_offset)
    if is_legacy(head):
        legacy = read_legacy(file, where, byte_offset, nbytes)
        old = _Reader(where, legacy.members)
        tree = read_pickle(legacy.pickle, where, old.storage, old.constructors())
        return TorchFile(tree, where, legacy.members, "little", has_checksums=False)
    _refuse_tar(head, where)
    directory = read_zip_directory(file, where, byte_offset, nbytes)
    folder = next(
        (name[: -len("data.pkl")] for name in directory if name.endswith("/data.pkl")), None
    )
    if folder is None:
        raise _missing(where, "data.pkl")
    outside = next((name for name in directory if not name.startswith(folder)), None)
    if outside is not None:
        raise source_error(
            "bad-zip",
            f"{where} is not a valid zip file",
            notes=[f"member `{outside}` is not in the folder `{folder}` of its pickle"],
            helps=["the file is damaged; copy it again"],
        )
    members = {name.removeprefix(folder): item for name, item in directory.items()}
    byteorder = "little"
    if "byteorder" in members:
        byteorder = _pread(file, where, members["byteorder"], 16).decode("ascii", "replace")
    if byteorder != "little":
        raise source_error(
            "big-endian",
            f"{where} has byte order `{byteorder}`",
            notes=["only little-endian files are read"],
            helps=["load and save it again with torch on the machine that wrote it"],
        )
    reader = _Reader(where, members)
    data = _pread(file, where, members["data.pkl"], PickleLimits().nbytes)
    earlier = None if known is None else _again(known.get(data), where, members)
    if earlier is not None:
        return TorchFile(earlier, where, members, byteorder)
    root = read_pickle(data, where, reader.storage, reader.constructors())
    if known is not None and isinstance(root, TensorRef) and len(known) < _MOST_KNOWN:
        known[data] = root
    return TorchFile(root, where, members, byteorder)


def _again(ref: TensorRef | None, where: str, members: Mapping[str, Member]) -> TensorRef | None:
    """A tensor that was made of the same pickle, over the storage of another file."""
    member = None if ref is None else members.get(f"data/{ref.storage_key}")
    if ref is None or member is None:
        return None
    size = ref.dtype.itemsize
    if member.nbytes != ref.storage_numel * size:
        return None
    at = member.byte_offset + ref.storage_offset * size
    return replace(ref, file=where, byte_offset=at)


class _Reader:
    """What the pickle's tensors are made with."""

    def __init__(self, where: str, members: Mapping[str, Member]) -> None:
        self._where = where
        self._members = members
        self._storages: dict[tuple[str, DType], _Storage] = {}

    def constructors(self) -> dict[Global, Constructor]:
        """The rebuild functions of torch."""
        return {
            Global("torch._utils", "_rebuild_tensor"): self._tensor,
            Global("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            Global("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            Global("torch._utils", "_rebuild_parameter"): self._parameter,
            Global("torch._utils", "_rebuild_parameter_with_state"): self._parameter,
            Global("torch.nn.parameter", "Parameter"): self._parameter,
            Global("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
            Global("torch.storage", "_load_from_bytes"): self._refuse_bytes,
        }

    def storage(self, key: object) -> object:
        """The storage of a persistent id `("storage", class, key, location, numel)`.

        Before torch 1.6 there are also views of storages, and the sources of modules, which are
        not looked at: `("module", class, file, source)`.
        """
        if isinstance(key, tuple) and len(key) == 4 and key[0] == "module":
            return key[1]
        if isinstance(key, tuple) and len(key) > 5 and key[5] is not None:
            raise ValueError("a view of a storage, as torch before 0.4 wrote it")
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        dtype = storage_dtype(key[1]) or dtype_of_global(key[1])
        name, numel = key[2], key[4]
        if dtype is None or not isinstance(name, str) or not isinstance(numel, int):
            raise ValueError(f"a storage of class {key[1]}")
        earlier = self._storages.get((name, dtype))
        if earlier is not None:
            return earlier
        member = self._members.get(f"data/{name}")
        if member is None:
            raise _missing(self._where, f"data/{name}")
        if numel < 0 or numel * dtype.itemsize != member.nbytes:
            raise source_error(
                "truncated",
                f"storage `{name}` of {self._where} has {member.nbytes} bytes, "
                f"its pickle says {numel * dtype.itemsize}",
                helps=["the file is damaged; copy it again"],
            )
        storage = _Storage(member, dtype, name, numel)
        self._storages[name, dtype] = storage
        return storage

    def _tensor(self, args: tuple[object, ...]) -> object:
        return self._make(args[0], args[1], args[2], args[3], None)

    def _tensor_v3(self, args: tuple[object, ...]) -> object:
        """Storage, offset, size, stride, requires_grad, hooks, dtype[, metadata]."""
        dtype = dtype_of_global(args[6])
        if dtype is None:
            raise ValueError(f"a tensor of type {args[6]}")
        return self._make(args[0], args[1], args[2], args[3], dtype)

    def _parameter(self, args: tuple[object, ...]) -> object:
        data = args[0]
        if not isinstance(data, TensorRef):
            return Record("torch._utils", "_rebuild_parameter", args)
        return TensorRef(
            data.file,
            data.byte_offset,
            data.dtype,
            data.shape,
            data.strides,
            data.storage_key,
            data.storage_numel,
            data.storage_offset,
            True,
        )

    def _from_type(self, args: tuple[object, ...]) -> object:
        """A tensor with attributes of its own: the tensor and these; not one of a subclass."""
        function, cls, inner, state = args
        plain = not _loaded(state) or isinstance(state, dict)
        if isinstance(function, Global) and isinstance(inner, tuple) and plain:
            make = self.constructors().get(function)
            if make is not None and cls in (
                Global("torch.nn.parameter", "Parameter"),
                Global("torch", "Tensor"),
            ):
                tensor = make(inner)
                if isinstance(tensor, TensorRef) and isinstance(state, dict) and state:
                    return replace(tensor, attributes=state)
                return tensor
        return Record("torch._tensor", "_rebuild_from_type_v2", args)

    def _refuse_bytes(self, args: tuple[object, ...]) -> object:
        raise source_error(
            "legacy-torch-file",
            f"{self._where} holds a tensor as a file within its pickle",
            notes=["torch before 1.6 wrote such files"],
            helps=["load and save it again with a current torch"],
        )

    def _make(
        self, storage: object, offset: object, size: object, stride: object, dtype: DType | None
    ) -> TensorRef:
        if not isinstance(storage, _Storage) or not _is_number(offset):
            raise ValueError("a tensor without a storage")
        shape, strides = _integers(size), _integers(stride)
        if len(shape) != len(strides) or offset < 0 or min((*shape, *strides, 0)) < 0:
            raise ValueError(f"a tensor of shape {list(shape)} with strides {list(strides)}")
        kind = dtype or storage.dtype
        nbytes = storage.numel * storage.dtype.itemsize
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
        if prod(shape) and last * kind.itemsize > nbytes:
            raise source_error(
                "tensor-out-of-bounds",
                f"a tensor of shape {list(shape)} exceeds storage `{storage.key}` of {self._where}",
                notes=[
                    f"its last element is {last - 1}, the storage has {nbytes // kind.itemsize}"
                ],
                helps=["the file is damaged; copy it again"],
            )
        if prod(shape) * kind.itemsize > max(_MAX_REPEATED, _MAX_REPEATS * nbytes):
            raise source_error(
                "tensor-out-of-bounds",
                f"a tensor of shape {list(shape)} repeats storage `{storage.key}` "
                f"of {self._where} too often",
                notes=[f"{prod(shape) * kind.itemsize} bytes are made of {nbytes}"],
                helps=["the file is damaged; copy it again"],
            )
        return TensorRef(
            self._where,
            storage.member.byte_offset + offset * kind.itemsize,
            kind,
            shape,
            strides,
            storage.key,
            nbytes // kind.itemsize,
            offset,
        )


def read_tensor_pickle(
    data: bytes, path: str | os.PathLike[str], byte_offset: int, nbytes: int
) -> object:
    """The tensor of a pickle that is kept apart from its storage, the bytes of a file given here.

    Raises: ReshardError[bad-pickle | truncated | tensor-out-of-bounds].
    """
    where = os.fspath(path)
    reader = _Reader(where, {"data/0": Member("data/0", byte_offset, nbytes, 0)})
    return read_pickle(data, where, reader.storage, reader.constructors())


def read_small(ref: TensorRef) -> bytes:
    """The elements of a tensor of at most 1 MiB, dense and row-major.

    Raises: ReshardError[source-unreadable | truncated]; ValueError when it is larger.
    """
    size = ref.dtype.itemsize
    if ref.nbytes > _SMALL_NBYTES:
        raise ValueError(f"{ref.nbytes} bytes are not small")
    if ref.is_contiguous:
        return _read(ref.file, ref.byte_offset, ref.nbytes)
    return b"".join(
        _read(ref.file, ref.byte_offset + at * size, size)
        for at in _offsets(ref.shape, ref.strides)
    )


def walk(
    root: object,
    visit: Callable[[tuple[object, ...], TensorRef], None],
    path: tuple[object, ...] = (),
) -> None:
    """Call `visit` with the path and the reference of every tensor of a tree, in order."""
    if isinstance(root, TensorRef):
        visit(path, root)
    elif isinstance(root, dict):
        for key, value in root.items():
            walk(value, visit, (*path, key))
    elif isinstance(root, (list, tuple)):
        for index, value in enumerate(root):
            walk(value, visit, (*path, index))


def _offsets(shape: tuple[int, ...], strides: tuple[int, ...]) -> Iterator[int]:
    if not shape:
        yield 0
        return
    for index in range(shape[0]):
        for inner in _offsets(shape[1:], strides[1:]):
            yield index * strides[0] + inner


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > _MAX_DIMENSIONS:
        raise ValueError("a shape that is no short tuple")
    if not all(_is_number(item) for item in value):
        raise ValueError("a shape that is not of integers")
    return tuple(value)


def _is_number(value: object) -> TypeGuard[int]:
    """Whether a value is a size, a stride, or an offset; a negative one is told apart later."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER


def _loaded(state: object) -> bool:
    """Whether a state says anything."""
    if isinstance(state, tuple):
        return any(item not in ((), None) and bool(item) for item in state)
    return bool(state)


def _refuse_tar(head: bytes, where: str) -> None:
    if head[257:262] == b"ustar":
        raise source_error(
            "legacy-torch-file",
            f"{where} is in the tar format of the first versions of torch",
            helps=[
                "load and save it again with a current torch, on a machine where you trust the file"
            ],
        )


def _pread(file: Window, where: str, member: Member, limit: int) -> bytes:
    if member.nbytes > limit:
        raise source_error(
            "bad-pickle",
            f"member `{member.name}` of {where} is too large",
            notes=[f"{member.nbytes} bytes; at most {limit} are read"],
        )
    return file.pread(member.nbytes, member.byte_offset)


def _read(path: str, byte_offset: int, nbytes: int) -> bytes:
    try:
        fd = open_regular(path)
        try:
            data = os.pread(fd, nbytes, byte_offset)
        finally:
            os.close(fd)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) != nbytes:
        raise source_error(
            "truncated",
            f"{path} is shorter than its index says",
            notes=[f"bytes {byte_offset} to {byte_offset + nbytes} are wanted"],
            helps=["the file was not written or copied completely; copy it again"],
        )
    return data


def _missing(where: str, name: str) -> ReshardError:
    return source_error(
        "not-a-torch-file",
        f"{where} is not a file that `torch.save` wrote",
        notes=[f"it is a zip file without a member `{name}`"],
    )
