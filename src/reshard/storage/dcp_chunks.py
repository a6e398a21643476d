"""The chunks of a distributed checkpoint: each is a file of `torch.save` within a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.errors import Diagnostic, Exit, ReshardError, source_error
from reshard.plan.catalog import Fragment, SourceFile
from reshard.storage.dcp_records import Chunk, Metadata, StoredObject, StoredTensor
from reshard.storage.inert import Global, Record
from reshard.storage.kept import encode
from reshard.storage.torch_file import (
    KnownTensors,
    TensorRef,
    open_torch_file,
    read_tensor_pickle,
)
from reshard.store.digest import crc32
from reshard.store.regular_file import open_regular
from reshard.store.source import LocalSource

_MAX_HEADER = 100_000_000
"""Bytes of the longest header of a safetensors file."""


_READ = 1 << 20

_SUBCLASSED = {
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch._utils", "_rebuild_wrapper_subclass"),
}
"""What makes a tensor of a class of its own."""


class SubclassError(ReshardError):
    """A tensor of a class of its own, whose elements only that class knows."""


class ChunkReader:
    """Opens chunks and objects, and remembers the files that they are in.

    Args:  root: the folder that file names start from.

    Attributes:  raw: files of bytes whose pickles are kept in `.metadata`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw: set[str] = set()
        self.files: dict[str, SourceFile] = {}
        self._known: KnownTensors = {}
        self._read: set[tuple[str, int, int, str]] = set()

    def know(self, file: str) -> None:
        """Remember a file as it is now.

        Raises: ReshardError[missing-file].
        """
        if file not in self.files:
            self.files[file] = LocalSource(self.root).need(
                file,
                f"`.metadata` in {self.root}",
                "copy the whole folder; every rank wrote a part of it",
            )

    def open(self, stored: StoredTensor, chunk: Chunk) -> TensorRef:
        """The tensor of a chunk, as it lies.

        Raises: ReshardError[missing-file | chunk-mismatch], and what `open_torch_file` raises.
        """
        self.know(chunk.file)
        path = self.root / chunk.file
        self._read.add((chunk.file, chunk.byte_offset, chunk.nbytes, stored.name))
        root = self._raw(chunk, path) if chunk.tensor is not None else self._blob(chunk, path)
        if isinstance(root, Record) and (root.module, root.name) in _SUBCLASSED:
            raise _subclass(stored, root, path)
        if not isinstance(root, TensorRef):
            raise _mismatch(stored, chunk, path, "it is no tensor")
        if root.shape != chunk.size or root.dtype != stored.dtype:
            raise _mismatch(stored, chunk, path, f"it is {root.dtype} of shape {list(root.shape)}")
        return root

    def print_of(self, stored: StoredTensor, chunk: Chunk, nbytes: int) -> tuple[int, bytes]:
        """The CRC-32 of a chunk's elements, and some of their bytes, from its start and middle.

        Args:  nbytes: to read at either place.
        """
        ref = self.open(stored, chunk)
        half = ref.nbytes // 2 // ref.dtype.itemsize * ref.dtype.itemsize
        fd = open_regular(ref.file)
        try:
            some = b"".join(
                os.pread(fd, min(nbytes, ref.nbytes - at), ref.byte_offset + at) for at in (0, half)
            )
            crc = 0
            if chunk.tensor is None and ref.is_contiguous and ref.numel == ref.storage_numel:
                torch_file = open_torch_file(ref.file, chunk.byte_offset, chunk.nbytes)
                crc = torch_file.members[f"data/{ref.storage_key}"].crc
            for at in range(0, 0 if crc else ref.nbytes, _READ):
                count = min(_READ, ref.nbytes - at)
                crc = crc32(os.pread(fd, count, ref.byte_offset + at), crc)
        finally:
            os.close(fd)
        return crc, some

    def _blob(self, chunk: Chunk, path: Path) -> object:
        """The root of a file of `torch.save` within a file."""
        try:
            return open_torch_file(path, chunk.byte_offset, chunk.nbytes, self._known).root
        except ReshardError:
            if is_safetensors(path, chunk.byte_offset):
                raise _safetensors(path) from None
            raise

    def _raw(self, chunk: Chunk, path: Path) -> object:
        """The tensor of bytes whose pickle is kept in `.metadata`."""
        assert chunk.tensor is not None
        self.raw.add(chunk.file)
        stop, nbytes = chunk.byte_offset + chunk.nbytes, self.files[chunk.file].nbytes
        if min(chunk.byte_offset, chunk.nbytes) < 0 or stop > nbytes:
            raise source_error(
                "truncated",
                f"{path} is shorter than its index says",
                notes=[f"bytes {chunk.byte_offset} to {stop} are needed, but it has {nbytes}"],
                helps=["the file was not written or copied completely; copy it again"],
            )
        return read_tensor_pickle(chunk.tensor, path, chunk.byte_offset, chunk.nbytes)

    def fragments(self, stored: StoredTensor) -> tuple[Fragment, ...]:
        """Every chunk as a box of its tensor; empty ones only where the tensor is empty.

        Raises: ReshardError[missing-chunk], and what `open` raises.
        """
        check_volume(stored)
        out = []
        for chunk in stored.chunks:
            ref = self.open(stored, chunk)
            if prod(chunk.size) or not prod(stored.shape):
                out.append(fragment_of(ref, chunk, stored.shape))
        return tuple(out)

    def refuse_overlaps(self) -> None:
        """Refuse bytes that were read as parts of two chunks.

        Raises: ReshardError[bad-metadata].
        """
        file, end, name = "", 0, ""
        for own, start, nbytes, other in sorted(self._read):
            if nbytes and own == file and start < end:
                raise source_error(
                    "bad-metadata",
                    f"chunks of `{name}` and `{other}` overlap in {self.root / own}",
                    notes=[f"the first ends at byte {end}, the second begins at {start}"],
                    helps=["the folder is damaged; copy it again"],
                )
            if own != file or start + nbytes > end:
                file, end, name = own, start + nbytes, other

    def objects(self, metadata: Metadata) -> Iterator[tuple[str, object]]:
        """Every pickled object by name, as tagged JSON."""
        for item in metadata.objects:
            self.know(item.file)
            opened = open_torch_file(self.root / item.file, item.byte_offset, item.nbytes)
            yield item.name, encode(opened.root)

    def object_of(self, item: StoredObject) -> object:
        """One pickled object, as the pickle reader gives it."""
        self.know(item.file)
        return open_torch_file(self.root / item.file, item.byte_offset, item.nbytes).root


def fragment_of(ref: TensorRef, chunk: Chunk, shape: tuple[int, ...]) -> Fragment:
    """A chunk as a fragment of a tensor of this shape."""
    whole = chunk.size == shape
    return Fragment(
        0,
        ref.numel,
        chunk.file,
        ref.byte_offset,
        None if ref.is_contiguous else ref.strides,
        None,
        None if whole else Box(chunk.lo, chunk.size),
    )


def is_safetensors(path: Path, byte_offset: int) -> bool:
    """Whether a place of a file looks like the beginning of a safetensors file."""
    try:
        fd = open_regular(path)
    except OSError:
        return False
    try:
        head = os.pread(fd, 9, byte_offset)
    finally:
        os.close(fd)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER


def _safetensors(path: Path) -> ReshardError:
    return source_error(
        "unsupported-dcp",
        f"{path} was written with `SerializationFormat.SAFETENSORS`",
        notes=[
            "torch notes wrong places for the tensors of such a file, and cannot load it either"
        ],
        helps=["save it again with `SerializationFormat.TORCH_SAVE`, the default"],
    )


def check_volume(stored: StoredTensor) -> None:
    """Refuse chunks that do not add up; the coverage proof looks closer.

    Raises: ReshardError[missing-chunk].
    """
    volume = sum(prod(chunk.size) for chunk in stored.chunks)
    if volume < prod(stored.shape):
        raise source_error(
            "missing-chunk",
            f"`{stored.name}` is incomplete",
            notes=[
                f"its chunks contain {volume} of the {prod(stored.shape)} elements "
                f"of shape {list(stored.shape)}"
            ],
            helps=["the checkpoint is damaged, or one rank's part is missing; use an earlier one"],
        )


def _subclass(stored: StoredTensor, root: Record, path: Path) -> SubclassError:
    named = [item for item in root.args if isinstance(item, Global)]
    name = f"`{named[-1]}`" if named else "a class that is not known"
    return SubclassError(
        [
            Diagnostic(
                "unsupported-dcp",
                f"`{stored.name}` is stored as a tensor of class {name}",
                notes=(
                    f"in {path}; `.metadata` describes it as {stored.dtype} of shape "
                    f"{list(stored.shape)}",
                    "such a class packs its elements (as torchao's optimizers in 8, 4 or fp8 bits "
                    "do), and only its own code unpacks them",
                ),
                helps=(
                    "keep only the weights with `--states weights`",
                    "or load it where it was trained, and save it with plain tensors",
                ),
            )
        ],
        Exit.SOURCE,
    )


def _mismatch(stored: StoredTensor, chunk: Chunk, path: Path, why: str) -> ReshardError:
    return source_error(
        "chunk-mismatch",
        f"the chunk of `{stored.name}` at {list(chunk.lo)} does not match `.metadata`",
        notes=[
            f"{why}, in {path} at byte {chunk.byte_offset}",
            f"expected: {stored.dtype} of shape {list(chunk.size)}",
        ],
        helps=["the folder mixes files of two checkpoints, or is damaged; copy it again"],
    )
