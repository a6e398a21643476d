"""What `.metadata` tells: tensors with their chunks, objects, and the paths of their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.dtypes import DType

Offsets = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One stored box of a tensor.

    Args:  lo, size: per dimension.  file: relative to the folder.
           byte_offset, nbytes: of the blob.
           tensor: the pickle of its tensor, where that is kept apart and the blob is the bytes of
                   its storage alone.
    """

    lo: Offsets
    size: Offsets
    file: str
    byte_offset: int
    nbytes: int
    tensor: bytes | None = None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor with its global shape and all of its chunks.

    Args:  copy: which one, where several ranks wrote it, each without asking the others.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    copy: int = 0


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A pickled object.

    Args:  writer: the file that lists it, where every rank wrote its own `.metadata`.
    """

    name: str
    file: str
    byte_offset: int
    nbytes: int
    writer: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A whole `.metadata`.

    Args:  paths: by name, the keys of the nested state dict; empty when the file does not tell.
           version: as stated.  extra: attributes of its root that the format does not name.
           files: those that tell it, as they are shown.  copies: of its tensors, at the most.
    """

    tensors: tuple[StoredTensor, ...]
    objects: tuple[StoredObject, ...]
    paths: Mapping[str, tuple[str | int, ...]]
    version: str
    extra: Mapping[str, object]
    files: tuple[str, ...] = ()
    copies: int = 1

    def blobs(self) -> list[tuple[str, int, int]]:
        """The files of `torch.save` within files: each file, where it begins, and its bytes."""
        chunks = (chunk for tensor in self.tensors for chunk in tensor.chunks)
        items: list[Chunk | StoredObject] = [item for item in chunks if item.tensor is None]
        items += self.objects
        return sorted((item.file, item.byte_offset, item.nbytes) for item in items)
