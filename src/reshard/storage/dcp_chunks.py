"""The chunks of a distributed checkpoint: each is a file of `torch.save` within a file."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.errors import ReshardError, source_error
from reshard.plan.catalog import Fragment, SourceFile
from reshard.storage.dcp_metadata import Chunk, Metadata, StoredTensor
from reshard.storage.objects import to_json
from reshard.storage.torch_file import TensorRef, open_torch_file, read_small


class ChunkReader:
    """Opens chunks and objects, and remembers the files that they are in.

    Args:  root: the folder that file names start from.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, SourceFile] = {}

    def know(self, file: str) -> None:
        """Remember a file as it is now.

        Raises: ReshardError[missing-file].
        """
        if file not in self.files:
            self.files[file] = _source_file(self.root, file)

    def open(self, stored: StoredTensor, chunk: Chunk) -> TensorRef:
        """The tensor of a chunk, as it lies.

        Raises: ReshardError[missing-file | chunk-mismatch], and what `open_torch_file` raises.
        """
        self.know(chunk.file)
        path = self.root / chunk.file
        root = open_torch_file(path, chunk.byte_offset, chunk.nbytes).root
        if not isinstance(root, TensorRef):
            raise _mismatch(stored, chunk, path, "it is no tensor")
        if root.shape != chunk.size or root.dtype != stored.dtype:
            raise _mismatch(stored, chunk, path, f"it is {root.dtype} of shape {list(root.shape)}")
        return root

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

    def objects(self, metadata: Metadata) -> Iterator[tuple[str, object]]:
        """Every pickled object by name, as tagged JSON."""
        for item in metadata.objects:
            self.know(item.file)
            opened = open_torch_file(self.root / item.file, item.byte_offset, item.nbytes)
            yield item.name, to_json(opened.root, tensor=small_tensor)


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


def small_tensor(ref: TensorRef) -> object:
    """A small tensor within an object, with its bytes."""
    data = base64.b64encode(read_small(ref)).decode("ascii")
    return {"$tensor": {"dtype": str(ref.dtype), "shape": list(ref.shape), "data": data}}


def check_volume(stored: StoredTensor) -> None:
    """Refuse chunks that do not add up; the coverage proof looks closer.

    Raises: ReshardError[missing-chunk].
    """
    held = sum(prod(chunk.size) for chunk in stored.chunks)
    if held < prod(stored.shape):
        raise source_error(
            "missing-chunk",
            f"`{stored.name}` is not stored whole",
            notes=[
                f"its chunks hold {held} of the {prod(stored.shape)} elements "
                f"of shape {list(stored.shape)}"
            ],
            helps=["the checkpoint is damaged, or one rank's part is missing; use an earlier one"],
        )


def _mismatch(stored: StoredTensor, chunk: Chunk, path: Path, why: str) -> ReshardError:
    return source_error(
        "chunk-mismatch",
        f"the chunk of `{stored.name}` at {list(chunk.lo)} is not what `.metadata` says",
        notes=[
            f"{why}, in {path} at byte {chunk.byte_offset}",
            f"wanted: {stored.dtype} of shape {list(chunk.size)}",
        ],
        helps=["the folder mixes files of two checkpoints, or is damaged; copy it again"],
    )


def _source_file(root: Path, file: str) -> SourceFile:
    try:
        stat = (root / file).stat()
    except OSError:
        raise source_error(
            "missing-file",
            f"{root / file} is missing",
            notes=[f"`.metadata` in {root} names it"],
            helps=["copy the whole folder; every rank wrote a part of it"],
        ) from None
    return SourceFile(file, stat.st_size, stat.st_mtime_ns)
