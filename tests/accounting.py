"""An independent account of a source: what of its files no tensor, no fact, and no list has.

Every file below the folder is looked at, and in every file that the reader knows (torch, DCP,
safetensors, JSON) every tensor and every value. A tensor is accounted for if its bytes are those of
a stored tensor of the catalog, or if they are kept; a value, if the facts of the training have it
under the same key, or if it is one of the few that say where tensors lie (`STRUCTURE`). Everything
else must be listed in `Catalog.left`.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from reshard import formats
from reshard.errors import ReshardError
from reshard.plan.catalog import Catalog
from reshard.storage.dcp_metadata import metadata_files, read_metadata
from reshard.storage.kept import encode
from reshard.storage.safetensors import read_header
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import open_torch_file, read_small

TRACKERS = {"latest", "latest.txt", "latest_checkpointed_iteration.txt"}
OWN = {"universal": {"manifest.json", "layout.ucl", "extra/framework.json"}}

_PARAMS = r"(.*\.)?param_groups\.\d+\.params\.\d+"
"""Numbers of parameters: the facts list their names."""

STRUCTURE = {
    "deepspeed": (
        _PARAMS,
        r"(param_shapes|frozen_param_shapes)(\..*)?",
        r"(shared_params|frozen_param_fragments|optimizer|module)",  # None: there are none
        r"(dp|mp)_world_size|checkpoint_parallel_dimensions\.\w+_degree|ds_version",
        r"(optimizer|optimizer_state_dict)(\.zero_stage\..*|\.partition_count(\.\d+)?)",
        r"optimizer_state_dict\.(param_slice_mappings|group_paddings|param_alignment_paddings)\..*",
        r"optimizer_state_dict\.(ds_zero_partition_groups\..*|ds_version)",
    ),
    "megatron": (
        _PARAMS,
        r"(sharded|common)_backend(_version)?",
        r"(.*\.)?buckets_coalesced|(.*\.)?numel_unpadded",
        r"model\d*\..*\._extra_state",  # None: the layer has no such state
    ),
    "nanotron": (_PARAMS, r"names\.\d+"),
    "dcp": (_PARAMS,),
    "described": (
        _PARAMS,
        r".*\.(args|state)\..*|.*\.(class\.[01]|how)",  # where a DTensor lies on its mesh
    ),
    "hf": (r"weight_map\..*|metadata\.total_(size|parameters)",),
}
"""By format, the entries that say which tensor lies where; a reader makes the catalog of them."""

_WHATEVER = (
    (re.compile(r"optimizer_state_dict\.fp32_flat_groups\.\d+"), 16),
    (re.compile(r"optimizer_state_dict\.base_optimizer_state\.state\.\d+\.\w+"), 16),
    (re.compile(r".*\.bucket_idx_\d+\.\w+"), 64),
)
"""Flat buffers in which padding holds whatever lay in the memory, and how many elements are less
than one gap: ZeRO-3 pads each parameter to a multiple of the ranks, Megatron to one of 64; the
padding behind a group of ZeRO-1 has a state too.
"""


def unaccounted(path: Path) -> list[str]:
    """Everything of a source that is neither read, nor kept, nor listed."""
    catalog = formats.read(formats.recognize(path), path, strict_layout=False)
    account = _Account(catalog)
    return [*_files(path, catalog), *account.faults()]


def _files(path: Path, catalog: Catalog) -> Iterator[str]:
    root = Path(catalog.root).resolve()
    known = {(root / file.path).resolve() for file in catalog.files}
    known |= {(root / item.file).resolve() for item in catalog.left}
    nearby = {name for names in catalog.nearby.values() for name in names}
    for file in sorted(path.rglob("*")):
        here = file.resolve()
        if not file.is_file() or known & {here, *here.parents} or file.name in TRACKERS:
            continue
        names = {file.name, *file.relative_to(path).parts}
        if not (names | {f"{name}/" for name in names}) & nearby and file.stat().st_size:
            yield f"{file.relative_to(path)}: nothing reads or lists it"


class _Account:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._root = Path(catalog.root)
        self._structure = [re.compile(item) for item in STRUCTURE.get(catalog.format, ())]
        self._left = {(item.file, item.key) for item in catalog.left}
        self._ranges = _ranges(catalog)
        self._literals = {
            fragment.literal
            for tensor in catalog.tensors
            for fragment in tensor.fragments
            if fragment.literal is not None
        }
        self._facts, self._data = _facts(catalog)
        self._copies: dict[str, set[bytes]] = defaultdict(set)
        self._waiting: list[tuple[str, str, bytes, str]] = []

    def faults(self) -> Iterator[str]:
        """One line for each entry."""
        side = set(self._catalog.side_files.values())
        folders = {Path(file.path).parent for file in self._catalog.files}
        for file in self._catalog.files:
            if file.path not in side:
                yield from self._file(file.path)
        for folder in sorted(folders):
            if metadata_files(self._root / folder):
                yield from self._distributed(folder)
        for file_name, key, data, what in self._waiting:
            if data not in self._copies[key]:  # else another rank has the same
                yield f"{file_name}: {key}: {what}"

    def _file(self, name: str) -> Iterator[str]:
        path = self._root / name
        if name in OWN.get(self._catalog.format, ()):
            return
        if path.suffix == ".safetensors":
            for key, stored in read_header(path).tensors.items():
                stop = stored.byte_offset + stored.nbytes
                if self._gaps(name, stored.byte_offset, stop) and (name, key) not in self._left:
                    yield f"{name}: {key}: a tensor"
        elif path.suffix == ".json":
            yield from self._tree(name, json.loads(path.read_bytes()), [])
        elif path.suffix in (".pt", ".bin", ".pth", ".pkl") and path.stat().st_size:
            yield from self._torch(name, open_torch_file(path).root)

    def _torch(self, name: str, root: object, key: str = "") -> Iterator[str]:
        refs: list[TensorRef] = []

        def tensor(ref: TensorRef) -> object:
            refs.append(ref)
            return {"$tensor": len(refs) - 1}

        yield from self._tree(name, encode(root, tensor), [key] if key else [], refs)

    def _distributed(self, folder: Path) -> Iterator[str]:
        shown = "" if folder == Path() else f"{folder.as_posix()}/"
        metadata = read_metadata(self._root / folder, shown=shown)
        marks = tuple(f"{shown}{name}" for name in metadata_files(self._root / folder))
        for item in metadata.objects:
            if self._is_left(item.file, [item.name]) or self._is_left(marks[0], [item.name]):
                continue
            try:
                path = self._root / item.file
                root = open_torch_file(path, item.byte_offset, item.nbytes).root
            except ReshardError:
                yield f"{item.file}: {item.name}: an object that cannot be read"
                continue
            path_of = metadata.paths.get(item.name, (item.name,))
            last = str(path_of[-1]).rpartition(".")[2]
            if not _is_in(last, encode(root, lambda ref: None), self._facts):
                yield from self._torch(item.file, root, item.name)
        for stored in metadata.tensors:
            for chunk in stored.chunks:
                if self._is_left(chunk.file, [stored.name]) or self._is_left(
                    marks[0], [stored.name]
                ):
                    continue
                ref = _chunk(self._root, chunk)
                if ref is not None:
                    yield from self._tensor(chunk.file, [stored.name], ref)

    def _tree(
        self, file: str, value: Any, key: list[str], refs: list[TensorRef] | None = None
    ) -> Iterator[str]:
        if self._is_left(file, key):
            return
        if isinstance(value, dict) and set(value) == {"$tensor"} and refs is not None:
            yield from self._tensor(file, key, refs[value["$tensor"]])
            return
        words = [name for name in key if not name.isdigit()]
        if any(_is_in(name, value, self._facts) for name in (*key[-1:], *words[-1:])) and (
            refs is None or '"$tensor"' not in json.dumps(value)
        ):
            return
        if isinstance(value, dict):
            for name, item in value.items():
                if name == "$dict":
                    for inner, own in item:
                        yield from self._tree(file, own, [*key, str(inner)], refs)
                else:
                    own_key = key if name.startswith("$") else [*key, name]
                    yield from self._tree(file, item, own_key, refs)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._tree(file, item, [*key, str(index)], refs)
        elif not (self._is_structure(key) or self._is_step(key, value)):
            yield f"{file}: {'.'.join(key)}: {value!r}"

    def _tensor(self, file: str, key: list[str], ref: TensorRef) -> Iterator[str]:
        spans = zip(ref.shape, ref.strides, strict=True)
        last = 0 if not prod(ref.shape) else 1 + sum((size - 1) * by for size, by in spans)
        start, stop = ref.byte_offset, ref.byte_offset + last * ref.dtype.itemsize
        gaps = self._gaps(file, start, stop)
        name = ".".join(key)
        data = read_small(ref) if ref.nbytes < 1 << 20 else b""
        kept = data in self._literals or base64.b64encode(data).decode() in self._data
        if not gaps or (data and kept) or name.endswith("._rank_map"):  # of a DTensor's mesh
            self._copies[name].add(data)
        elif not _is_padding(name, gaps) and not _is_zero(self._root / file, gaps):
            self._waiting.append((file, name, data, f"a tensor {ref.dtype}{list(ref.shape)}"))
        yield from ()

    def _gaps(self, file: str, start: int, stop: int) -> list[tuple[int, int]]:
        """Ranges of bytes that no stored tensor has."""
        out = []
        for begin, end in self._ranges.get(file, []):
            if end <= start or begin >= stop:
                continue
            if begin > start:
                out.append((start, begin))
            start = max(start, end)
        return [*out, (start, stop)] if start < stop else out

    def _is_left(self, file: str, key: list[str]) -> bool:
        if self._catalog.withheld and any("optim" in name for name in (*key[:1], file)):
            return True  # whoever asks for it gets an error
        return any((file, ".".join(key[:count])) in self._left for count in range(1, len(key) + 1))

    def _is_step(self, key: list[str], value: object) -> bool:
        """Whether the count of a group is that of its parameters."""
        if not isinstance(value, int | float) or key[-1] != "step":
            return False
        return bool({struct.pack("<f", value), struct.pack("<q", int(value))} & self._literals)

    def _is_structure(self, key: list[str]) -> bool:
        return any(item.fullmatch(".".join(key)) for item in self._structure)


def _ranges(catalog: Catalog) -> dict[str, list[tuple[int, int]]]:
    """By file, the ranges of bytes that are stored tensors, in order and joined."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for tensor in catalog.tensors:
        for item in tensor.fragments:
            if item.literal is None and item.numel:
                shape = tensor.shape if item.box is None else item.box.size
                last = item.numel
                if item.strides is not None:
                    spans = zip(shape, item.strides, strict=True)
                    last = 1 + sum((size - 1) * by for size, by in spans)
                stop = item.byte_offset + last * tensor.dtype.itemsize
                found[item.file].append((item.byte_offset, stop))
    out = {}
    for file, ranges in found.items():
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        out[file] = joined
    return out


def _facts(catalog: Catalog) -> tuple[set[tuple[str, str]], set[str]]:
    """Every value that is known besides tensors with its key, and the bytes of kept tensors."""
    training = catalog.training
    known: set[tuple[str, str]] = set()
    data: set[str] = set()

    def walk(key: str, value: object) -> None:
        known.add((key, _canonical(value)))
        known.add((key.rpartition(".")[2], _canonical(value)))
        if isinstance(value, dict):
            inline = value.get("$tensor")
            if isinstance(inline, dict):
                data.add(str(inline.get("data")))
            for name, item in value.items():
                if name == "$dict":
                    for inner, own in item:
                        walk(str(inner), own)
                else:
                    walk(key if name.startswith("$") else name, item)
        elif isinstance(value, list):
            for item in value:
                walk(key, item)

    for tree in (
        {"iteration": training.iteration},
        *(dict(group) for group in training.param_groups),
        dict(training.state or {}),
        dict(training.framework or {}),
        dict(catalog.config or {}),
        dict(catalog.aliases or {}),
    ):
        walk("", to_json_value(tree))
    return known, data


def to_json_value(tree: object) -> object:
    """Facts as a file of JSON would give them."""
    return json.loads(json.dumps(tree))


def _is_in(key: object, value: object, facts: set[tuple[str, str]]) -> bool:
    return (str(key), _canonical(value)) in facts


def _canonical(value: object) -> str:
    """A value as text; tensors within it are looked at by themselves."""

    def bare(item: object) -> object:
        if isinstance(item, dict):
            return "tensor" if set(item) == {"$tensor"} else {k: bare(v) for k, v in item.items()}
        return [bare(own) for own in item] if isinstance(item, list) else item

    return json.dumps(bare(value), sort_keys=True)


def _chunk(root: Path, chunk: Any) -> TensorRef | None:
    if chunk.tensor is not None:  # its pickle is kept apart, so that its bytes are all there is
        return None
    found = open_torch_file(root / chunk.file, chunk.byte_offset, chunk.nbytes).root
    return found if isinstance(found, TensorRef) else None


def _is_padding(name: str, gaps: list[tuple[int, int]]) -> bool:
    return any(
        pattern.fullmatch(name) and all(stop - start < 4 * most for start, stop in gaps)
        for pattern, most in _WHATEVER
    )


def _is_zero(path: Path, gaps: list[tuple[int, int]]) -> bool:
    with path.open("rb") as file:
        for start, stop in gaps:
            file.seek(start)
            if file.read(stop - start).strip(b"\0"):
                return False
    return True
