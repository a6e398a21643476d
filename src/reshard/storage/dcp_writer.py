"""Writes the container of a distributed checkpoint: blobs of `torch.save` in a few files.

A format says which tensors there are, in which chunks, and which objects; what it gets is the
places of all bytes, and the `.metadata` that tells them.  One chunk is one blob.
Source: torch/distributed/checkpoint/metadata.py and filesystem.py (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod

from reshard.dtypes import DType
from reshard.plan.output import FileBytes, PlacedSpec, Written
from reshard.plan.plan import ArraySpec
from reshard.plan.slice import flat_range
from reshard.storage.inert import Record, Size
from reshard.storage.pickle_writer import (
    Hole,
    Pickled,
    Template,
    pickled,
    pickled_dict,
    write_pickle,
)
from reshard.storage.torch_output import TorchOutput
from reshard.storage.torch_writer import NewTensor, torch_dtype

METADATA = ".metadata"
VERSION = "1.0.0"
MAX_CHUNK_NBYTES = 64 << 20
_MODULE = "torch.distributed.checkpoint.metadata"


@dataclass(frozen=True, slots=True)
class NewChunk:
    """One box of a tensor that is to be written.

    Args:  lo: where it begins, per dimension.  spec: what fills it, with the size of the box as
           its `shape`.  file: that holds it, relative to the folder (see `data_file`).
    """

    lo: tuple[int, ...]
    spec: ArraySpec
    file: str


def chunks_of(spec: ArraySpec, file: str, limit: int = MAX_CHUNK_NBYTES) -> tuple[NewChunk, ...]:
    """A whole tensor as chunks of at most `limit` bytes each, as far as its rows allow.

    Loaders read whole chunks, also where they want a part of one.

    Args:  spec: of the whole tensor.  file: that holds all of them.
    """
    assert spec.shape is not None
    return tuple(
        NewChunk(lo, _part(spec, start, size), file)
        for lo, start, size in _boxes(spec.shape, limit // spec.dtype.itemsize)
    )


def _boxes(
    shape: tuple[int, ...], limit: int
) -> Iterator[tuple[tuple[int, ...], int, tuple[int, ...]]]:
    """Consecutive runs of a row-major tensor that are boxes: where, first element, and size."""
    if prod(shape) <= limit or not shape:
        yield (0,) * len(shape), 0, shape
        return
    row = prod(shape[1:])
    if row <= limit:
        step = limit // row
        for first in range(0, shape[0], step):
            size = min(step, shape[0] - first)
            yield (first, *(0,) * (len(shape) - 1)), first * row, (size, *shape[1:])
        return
    for index in range(shape[0]):
        for lo, start, inner in _boxes(shape[1:], limit):
            yield (index, *lo), index * row + start, (1, *inner)


def _part(spec: ArraySpec, start: int, shape: tuple[int, ...]) -> ArraySpec:
    if shape == spec.shape:
        return spec
    numel = prod(shape)
    segments = flat_range(spec.segments, start, numel)
    return replace(
        spec, label=f"{spec.label} from {start}", numel=numel, segments=segments, shape=shape
    )


def data_file(rank: int, index: int = 0) -> str:
    """The name of a data file, as a rank's writer gives it."""
    return f"__{rank}_{index}.distcp"


class DcpWriter:
    """The files of one folder of a distributed checkpoint.

    Tensors and objects are laid out in the order in which they come.  `placed`, `files`, and `head`
    are what `plan.output.Output` wants; `finish` gives the directories of all blobs once they are
    written, and `metadata` the bytes of `.metadata`, which a format writes last.

    Args:  folder: goes before the name of every file, e.g. `iter_0000003/`.
           blobs: takes the blobs too, where there are other torch files beside them.
    """

    def __init__(self, folder: str = "", blobs: TorchOutput | None = None) -> None:
        self._folder = folder
        self._blobs = TorchOutput() if blobs is None else blobs
        self._names: set[str] = set()
        # Pickled at once: the parts of a tree would take thirty times the memory.
        self._entries = bytearray()
        self._storage = bytearray()

    @property
    def placed(self) -> tuple[PlacedSpec, ...]:
        """Every array, in output order."""
        return tuple(self._blobs.placed)

    @property
    def files(self) -> Mapping[str, int]:
        """Every data file with its size in bytes."""
        return self._blobs.files

    @property
    def head(self) -> tuple[FileBytes, ...]:
        """Bytes that do not depend on the tensors."""
        return tuple(self._blobs.head)

    def nbytes(self, file: str) -> int:
        """Bytes of a data file so far."""
        return self._blobs.files.get(f"{self._folder}{file}", 0)

    def add_tensor(
        self, name: str, dtype: DType, shape: tuple[int, ...], chunks: Sequence[NewChunk]
    ) -> None:
        """Add a tensor.

        Args:  name: its key; not given before.  dtype: of all chunks.
               chunks: disjoint, together the whole tensor; one may be empty.
        """
        self._claim(name)
        entries = []
        for position, chunk in enumerate(chunks):
            size = chunk.spec.shape
            if size is None or chunk.spec.dtype is not dtype:
                raise ValueError(f"a chunk of {name} has no shape, or is not of {dtype}")
            self._store(name, Size(chunk.lo), position, chunk.file, self._blobs.tensor(chunk.spec))
            entries.append(_CHUNK.fill(Size(chunk.lo), Size(size)))
        self._enter(name, _TENSOR.fill(_properties(dtype), Size(shape), entries))

    def add_object(self, name: str, root: object, file: str) -> None:
        """Add an object, as `torch.save` writes it.

        Args:  root: plain values, `Global`s, `Record`s, and tensors made by `small_tensor` or
               `constant`.
        """
        self._claim(name)
        self._store(name, None, None, file, root)
        self._enter(name, _record("BytesStorageMetadata"))

    def add_constant(
        self, name: str, dtype: DType, shape: tuple[int, ...], data: bytes, file: str
    ) -> None:
        """Add a whole tensor whose bytes are known (a learning rate)."""
        self._claim(name)
        lo = Size((0,) * len(shape))
        self._store(name, lo, 0, file, self._blobs.constant(dtype, shape, data))
        chunk = _CHUNK.fill(lo, Size(shape))
        self._enter(name, _TENSOR.fill(_properties(dtype), Size(shape), [chunk]))

    def small_tensor(self, spec: ArraySpec) -> NewTensor:
        """A tensor inside of an object, filled as a spec says."""
        return self._blobs.tensor(spec)

    def constant(self, dtype: DType, shape: tuple[int, ...], data: bytes) -> NewTensor:
        """A tensor inside of an object, whose bytes are known."""
        return self._blobs.constant(dtype, shape, data)

    def metadata(self, paths: object = None, **other: object) -> FileBytes:
        """The file `.metadata`, complete; nothing is added after it, and its parts are given up.

        Args:  paths: `planner_data`: by key, its path in the nested state dict; None if not nested.
               other: further attributes of its root.
        """
        root = _record(
            "Metadata",
            state_dict_metadata=pickled_dict(self._entries),
            planner_data=paths,
            storage_data=pickled_dict(self._storage),
            storage_meta=_record(
                "StorageMeta", checkpoint_id=None, save_id=None, load_id=None, modules=[]
            ),
            version=VERSION,
            **other,
        )
        data = write_pickle(root)
        self._entries, self._storage = bytearray(), bytearray()
        return FileBytes(f"{self._folder}{METADATA}", 0, data)

    def finish(self, results: Sequence[Written]) -> tuple[FileBytes, ...]:
        """The directories of all blobs.

        Args:  results: of `placed`, in the same order.
        """
        return self._blobs.finish(results)

    def _claim(self, name: str) -> None:
        if name in self._names:
            raise ValueError(f"{name} is written twice")
        self._names.add(name)

    def _store(
        self, name: str, lo: Size | None, position: int | None, file: str, root: object
    ) -> None:
        at, nbytes = self._blobs.append(f"{self._folder}{file}", root)
        self._storage += _INDEX.fill(name, lo, position).data
        self._storage += _STORED.fill(file, at, nbytes).data

    def _enter(self, name: str, entry: object) -> None:
        self._entries += pickled(name).data + pickled(entry).data


def _record(name: str, **attributes: object) -> Record:
    return _made(_MODULE, name, **attributes)


def _made(module: str, name: str, **attributes: object) -> Record:
    """An object of a class without slots, as pickle makes it."""
    return Record(module, name, (), "newobj", [dict(attributes)] if attributes else [])


_INDEX = Template(_record("MetadataIndex", fqn=Hole(), offset=Hole(), index=Hole()))
_CHUNK = Template(_record("ChunkStorageMetadata", offsets=Hole(), sizes=Hole()))
_TENSOR = Template(_record("TensorStorageMetadata", properties=Hole(), size=Hole(), chunks=Hole()))
_STORED = Template(
    _made(
        "torch.distributed.checkpoint.filesystem",
        "_StorageInfo",
        relative_path=Hole(),
        offset=Hole(),
        length=Hole(),
        transform_descriptors=None,
    )
)


@cache
def _properties(dtype: DType) -> Pickled:
    layout = Record("torch.serialization", "_get_layout", ("torch.strided",))
    memory = Record(_MODULE, "_MEM_FORMAT_ENCODING", (0,))
    state = (torch_dtype(dtype), layout, False, memory, False)
    return pickled(Record(_MODULE, "TensorProperties", (), "newobj", [state]))


__all__ = ["METADATA", "DcpWriter", "NewChunk", "chunks_of", "data_file"]
