"""Collects torch files of an output: their bytes, and the places of their storages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import PurePosixPath

from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.plan.output import FileBytes, PlacedSpec, Written
from reshard.plan.plan import ArraySpec
from reshard.storage.torch_writer import NewStorage, NewTensor, TorchImage, plan_torch_file
from reshard.store.digest import crc32


@dataclass(frozen=True, slots=True)
class _Planned:
    """A torch file that waits for the checksums of its storages.

    Args:  at: where it begins in `file`.  first: index of its first storage in `placed`.
           keys: of the storages that are placed.  crcs: of the others, by key.
    """

    file: str
    at: int
    image: TorchImage
    first: int
    keys: tuple[str, ...]
    crcs: Mapping[str, int]


def _key(root: object) -> object:
    """What files have in common that are alike; None for trees of more than one tensor."""
    if isinstance(root, NewTensor):
        storage = root.storage
        of_storage = (storage.dtype, storage.numel, root.storage_offset)
        return (*of_storage, root.shape, root.strides, root.requires_grad, root.parameter)
    return repr(root) if _is_plain(root) else None


def _is_plain(root: object) -> bool:
    if type(root) is tuple:
        return all(_is_plain(item) for item in root)
    return root is None or type(root) in (bool, int, float, str)


class TorchOutput:
    """Torch files with tensors that the engine fills."""

    def __init__(self) -> None:
        self.placed: list[PlacedSpec] = []
        self.files: dict[str, int] = {}
        self.head: list[FileBytes] = []
        self._planned: list[_Planned] = []
        self._specs: dict[int, tuple[NewStorage, ArraySpec]] = {}
        self._alike: dict[object, TorchImage] = {}
        self._known: dict[int, tuple[NewStorage, bytes]] = {}

    def tensor(self, spec: ArraySpec, *, requires_grad: bool = False) -> NewTensor:
        """A dense tensor with a storage of its own, filled as a spec says.

        Args:  spec: its `shape`, or one dimension where it has none.
        """
        storage = NewStorage(spec.dtype, spec.numel)
        self._specs[id(storage)] = (storage, spec)
        shape = (spec.numel,) if spec.shape is None else spec.shape
        return NewTensor(storage, 0, shape, row_major(shape), requires_grad=requires_grad)

    def constant(self, dtype: DType, shape: tuple[int, ...], data: bytes) -> NewTensor:
        """A dense tensor whose bytes are known.

        Raises: ValueError if they are not as many as the tensor has.
        """
        storage = NewStorage(dtype, prod(shape))
        if storage.nbytes != len(data):
            raise ValueError(f"{len(data)} bytes for {dtype} of shape {list(shape)}")
        self._known[id(storage)] = (storage, data)
        return NewTensor(storage, 0, shape, row_major(shape))

    def add(self, file: str, root: object) -> None:
        """Plan a torch file.

        Args:  file: relative to the destination.  root: a tree with tensors made by `tensor`.
        """
        self._plan(file, 0, root, PurePosixPath(file).stem)

    def append(self, file: str, root: object) -> tuple[int, int]:
        """Plan a torch file behind what a file holds already: (where it begins, its bytes)."""
        at = self.files.get(file, 0)
        return at, self._plan(file, at, root, "archive")

    def finish(self, results: Sequence[Written]) -> tuple[FileBytes, ...]:
        """What follows once the checksums are known: the directories of all zip archives."""
        out = []
        for item in self._planned:
            crcs = dict(item.crcs)
            for key, result in zip(item.keys, results[item.first :], strict=False):
                if result.crc is None:
                    raise RuntimeError(f"no checksum of {key} in {item.file}")
                crcs[key] = result.crc
            out += [FileBytes(item.file, item.at + at, data) for at, data in item.image.tail(crcs)]
        return tuple(out)

    def _image(self, root: object, archive: str) -> TorchImage:
        """A file laid out; those of one tensor are alike but for what lies in its storage."""
        key = _key(root)
        if key is None:
            return plan_torch_file(root, archive)
        image = self._alike.get((archive, key))
        if image is None:
            image = self._alike.setdefault((archive, key), plan_torch_file(root, archive))
        if not isinstance(root, NewTensor):
            return image
        slots = tuple(replace(slot, storage=root.storage) for slot in image.storages)
        return replace(image, storages=slots)

    def _plan(self, file: str, at: int, root: object, archive: str) -> int:
        image = self._image(root, archive)
        first, keys = len(self.placed), []
        crcs: dict[str, int] = {}
        for slot in image.storages:
            place = at + slot.byte_offset
            plan = self._known.get(id(slot.storage))
            if plan is not None:
                self.head.append(FileBytes(file, place, plan[1]))
                crcs[slot.key] = crc32(plan[1])
                continue
            _, spec = self._specs[id(slot.storage)]
            if not spec.nbytes:
                crcs[slot.key] = 0
                continue
            keys.append(slot.key)
            self.placed.append(PlacedSpec(spec, file, place, digest=False, crc=True))
        self.files[file] = at + image.nbytes
        self.head += [FileBytes(file, at + start, data) for start, data in image.head]
        self._planned.append(_Planned(file, at, image, first, tuple(keys), crcs))
        return image.nbytes
