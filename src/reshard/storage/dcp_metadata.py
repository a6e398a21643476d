"""The `.metadata` file of a distributed checkpoint: what there is, and where each chunk lies.

Source: torch/distributed/checkpoint/metadata.py and filesystem.py, torch 2.0 to 2.13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.storage.dcp_merge import DisagreementError, merge
from reshard.storage.dcp_records import Chunk, Metadata, Offsets, StoredObject, StoredTensor
from reshard.storage.inert import Record
from reshard.storage.pickle_limits import PickleLimits
from reshard.storage.pickle_reader import read_pickle
from reshard.storage.pickle_values import dtype_of_global
from reshard.store.regular_file import read_file
from reshard.store.source import LocalSource

_MAX_DIMENSIONS = 64
_MAX_NUMBER = 2**63 - 1
_RANK = re.compile(r"__(\d+)\.metadata")
_SHARD = re.compile(r"/shard_[0-9.]+_[0-9.]+$")


_KNOWN = (
    "state_dict_metadata",
    "planner_data",
    "storage_data",
    "storage_meta",
    "version",
    "bytecheckpoint_version",
    "all_tensor_metadata",
)


def metadata_files(folder: Path) -> tuple[str, ...]:
    """The names of the files that tell what a folder holds: `.metadata`, or one of each rank."""
    source = LocalSource(folder)
    if source.has(".metadata"):
        return (".metadata",)
    matches = [match for name in source.files() if (match := _RANK.fullmatch(name))]
    return tuple(match[0] for match in sorted(matches, key=lambda match: int(match[1])))


def read_metadata(folder: Path, *, shown: str = "") -> Metadata:
    """Read one folder's `.metadata`, or those of its ranks.

    Args:  shown: prefix of the file names that are kept, e.g. `optimizer_0/`.
    Raises: ReshardError[incomplete-dcp | bad-metadata | bad-pickle | unsupported-dcp].
    """
    names = metadata_files(folder)
    if not names:
        raise source_error(
            "incomplete-dcp",
            f"{folder} was not written to the end",
            notes=["there is `.metadata.tmp`, but no `.metadata`, which is written last"],
            helps=["go back to an earlier checkpoint"],
        )
    parts = [_read_file(folder / name, shown) for name in names]
    if names == (".metadata",):
        return parts[0]
    try:
        return merge(parts)
    except DisagreementError as error:
        raise _bad(folder / names[0], str(error)) from None


def refuse_torch_dist(folder: Path, metadata: Metadata) -> None:
    """Refuse a checkpoint in Megatron's form `torch_dist` that lacks its `metadata.json`.

    Its names are no keys of a state dict: the optimizer's buffers would pass for parameters.

    Raises: ReshardError[incomplete-megatron].
    """
    if any(item.name.startswith("model.") for item in metadata.tensors):
        return
    shards = (item.name for item in metadata.objects if _SHARD.search(item.name))
    part = "common.pt" if LocalSource(folder).has("common.pt") else next(shards, None)
    if part is None:
        return
    raise source_error(
        "incomplete-megatron",
        f"{folder} is an incomplete Megatron checkpoint",
        notes=[f"it has `{part}`, as the form `torch_dist`, and no `metadata.json`"],
        helps=["`metadata.json` is written last: without it the save did not finish"],
    )


def _read_file(path: Path, shown: str) -> Metadata:
    root = read_pickle(read_file(path, PickleLimits().nbytes), str(path))
    if not isinstance(root, Record) or root.name != "Metadata":
        raise _bad(path, f"its root is a {_kind(root)}")
    try:
        return _Parser(path, shown).parse(root.attributes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _bad(path, f"{type(error).__name__}: {error}") from None


class _Parser:
    def __init__(self, path: Path, shown: str) -> None:
        self._path = path
        self._shown = shown

    def parse(self, root: Mapping[object, object]) -> Metadata:
        where = self._storage(root["storage_data"])
        extents = self._apart(root.get("all_tensor_metadata"))
        tensors, objects = [], []
        entries = root["state_dict_metadata"]
        if not isinstance(entries, dict):
            raise TypeError("state_dict_metadata is no dict")
        for name, entry in entries.items():
            if not isinstance(name, str) or not isinstance(entry, Record):
                raise TypeError(f"the entry of {name!r}")
            if entry.name == "TensorStorageMetadata":
                tensors.append(self._tensor(name, entry.attributes, where, extents))
            elif entry.name == "BytesStorageMetadata":
                if (name, None) not in where:
                    raise _bad(self._path, f"object `{name}` is stored nowhere")
                objects.append(StoredObject(name, *where[name, None], self._path.name))
            else:
                raise _bad(self._path, f"`{name}` is a {entry.name}")
        names: set[tuple[str, Offsets | None]] = {(t.name, c.lo) for t in tensors for c in t.chunks}
        names |= {(item.name, None) for item in objects}
        foreign = next((key for key in where if key not in names), None)
        if foreign is not None:
            raise _bad(
                self._path, f"a chunk of `{foreign[0]}` at {foreign[1]} is stored but not listed"
            )
        paths = root.get("planner_data") or {}
        if not isinstance(paths, dict):
            raise TypeError("planner_data is no dict")
        return Metadata(
            tuple(tensors),
            tuple(objects),
            {str(k): _path(v) for k, v in paths.items()},
            str(root.get("version") or root.get("bytecheckpoint_version") or ""),
            {str(k): v for k, v in root.items() if k not in _KNOWN and v},
            (f"{self._shown}{self._path.name}",),
        )

    def _apart(self, entries: object) -> dict[tuple[str, Offsets | None], bytes]:
        """Pickles of tensors that are not kept with their bytes, by name and offsets.

        Source: ByteCheckpoint checkpointer/meta_type.py `Metadata`, utilities/serialization.py.
        """
        if entries is None:
            return {}
        if not isinstance(entries, dict):
            raise TypeError("all_tensor_metadata is no dict")
        out = {}
        for index, data in entries.items():
            if isinstance(index, Record) and isinstance(data, bytes):
                offsets = index.attributes.get("offset")
                name = str(index.attributes["fqn"])
                out[name, None if offsets is None else _integers(offsets)] = data
        return out

    def _storage(self, entries: object) -> dict[tuple[str, Offsets | None], tuple[str, int, int]]:
        """By name and offsets: file, byte offset, bytes."""
        if not isinstance(entries, dict):
            raise TypeError("storage_data is no dict")
        out: dict[tuple[str, Offsets | None], tuple[str, int, int]] = {}
        for index, info in entries.items():
            if not isinstance(index, Record) or not isinstance(info, Record):
                raise TypeError("an entry of storage_data")
            key, value = index.attributes, info.attributes
            name, offsets = key["fqn"], key.get("offset")
            if value.get("transform_descriptors"):
                raise source_error(
                    "unsupported-dcp",
                    f"`{name}` in {self._path.parent} is stored through "
                    f"{', '.join(map(str, _items(value['transform_descriptors'])))}",
                    notes=["only plain files are read"],
                    helps=["load and save it again without stream extensions"],
                )
            file, byte_offset, nbytes = value["relative_path"], value["offset"], value["length"]
            if not (isinstance(file, str) and isinstance(name, str)):
                raise TypeError("a name that is not text")
            byte_offset, nbytes = _integers((byte_offset, nbytes))
            if min(byte_offset, nbytes) < 0:
                raise ValueError(f"bytes {byte_offset} and {nbytes} more")
            if not file.isprintable() or Path(file).is_absolute() or ".." in Path(file).parts:
                raise _bad(self._path, f"file name `{file}` leads out of the folder")
            at = None if offsets is None else _integers(offsets)
            if (name, at) in out:
                raise _bad(self._path, f"the chunk of `{name}` at {at} is stored twice")
            out[name, at] = (self._shown + file, byte_offset, nbytes)
        return out

    def _tensor(
        self,
        name: str,
        entry: Mapping[object, object],
        where: Mapping[tuple[str, Offsets | None], tuple[str, int, int]],
        extents: Mapping[tuple[str, Offsets | None], bytes],
    ) -> StoredTensor:
        shape = _integers(entry["size"])
        if len(shape) > _MAX_DIMENSIONS:
            raise ValueError(f"`{name}` has {len(shape)} dimensions")
        dtype = _dtype(entry["properties"])
        if dtype is None:
            raise _bad(self._path, f"`{name}` has an unknown element type")
        chunks = []
        for item in _items(entry["chunks"]):
            if not isinstance(item, Record):
                raise TypeError("a chunk")
            lo, size = _integers(item.attributes["offsets"]), _integers(item.attributes["sizes"])
            if len(lo) != len(shape) or len(size) != len(shape):
                raise _bad(self._path, f"a chunk of `{name}` has {len(size)} dimensions")
            if any(a < 0 or n < 0 or a + n > s for a, n, s in zip(lo, size, shape, strict=True)):
                raise _bad(
                    self._path,
                    f"a chunk of `{name}` at {list(lo)} of {list(size)} "
                    f"exceeds its shape {list(shape)}",
                )
            place = where.get((name, lo))
            if place is None and not lo:
                place = where.get((name, None))
            if place is None:
                raise source_error(
                    "missing-chunk",
                    f"the chunk of `{name}` at {list(lo)} is not stored",
                    notes=[f"listed in {self._path}, shape {list(size)} of {list(shape)}"],
                    helps=["the checkpoint is damaged; go back to an earlier one"],
                )
            chunks.append(Chunk(lo, size, *place, extents.get((name, lo))))
        return StoredTensor(name, dtype, shape, tuple(chunks))


def _dtype(properties: object) -> DType | None:
    """The element type in TensorProperties, whose state is a tuple, or a dict in old files."""
    if not isinstance(properties, Record):
        return None
    for state in properties.state:
        if isinstance(state, tuple) and state and dtype_of_global(state[0]) is not None:
            return dtype_of_global(state[0])
    return dtype_of_global(properties.attributes.get("dtype"))


def _items(value: object) -> list[object]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("a list is wanted")
    return list(value)


def _integers(value: object) -> tuple[int, ...]:
    items = _items(value)
    out = tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool))
    if len(out) != len(items) or any(abs(item) > _MAX_NUMBER for item in out):
        raise TypeError("sizes or offsets that are not of integers of 64 bits")
    return out


def _path(value: object) -> tuple[str | int, ...]:
    items = _items(value)
    out = tuple(item for item in items if isinstance(item, (str, int)))
    if len(out) != len(items):
        raise TypeError("a path in planner_data that is not of names and numbers")
    return out


def _kind(value: object) -> str:
    return str(value) if isinstance(value, Record) else type(value).__name__


def _bad(path: Path, why: str) -> ReshardError:
    return source_error(
        "bad-metadata",
        f"{path} cannot be understood",
        notes=[why],
        helps=["the file is damaged, or was written by an unknown program"],
    )


__all__ = [
    "Chunk",
    "Metadata",
    "Offsets",
    "StoredObject",
    "StoredTensor",
    "metadata_files",
    "read_metadata",
]
