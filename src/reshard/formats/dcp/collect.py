"""Everything that the folders of a checkpoint hold: tensors by parameter and state, and objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.dcp.folders import Folder, Part
from reshard.formats.dcp.mark import Mark, read_mark
from reshard.formats.dcp.names import GroupKey, Names, Path, Role
from reshard.formats.dcp.number import local_number
from reshard.plan.catalog import Coord, LocalTensor
from reshard.plan.numbering import names_of_numbers
from reshard.storage.dcp_chunks import ChunkReader, small_tensor
from reshard.storage.dcp_metadata import Metadata, StoredTensor, read_metadata
from reshard.storage.objects import to_json
from reshard.storage.torch_file import read_small

_FLAT = ("_flat_param", "flat_param")
_FLOATS = (DType.F64, DType.F32, DType.F16, DType.BF16)
_INTEGERS = (DType.I64, DType.I32, DType.I16, DType.U8)


@dataclass(slots=True)
class Collected:
    """What was found.

    Args:  copies: how often the most copied tensor is stored.
           groups: hyper-parameters by where they stand, as their pickles have them.
           objects: all other objects by key, as tagged JSON.
           rank_objects: by the file that lists them, those that differ from the first rank's.
           paths: by key, of objects and of tensors that belong to no parameter.
           model, optimizer: where their state dicts stand; None where there is none.
           flat: whether the optimizer's state dict was flattened by torch before it was saved.
           numbers: integers that are stored as tensors and belong to no parameter, by key.
           numbered: names of the parameters that the optimizer counts.
           aliases: other names of tied weights, which are stored too.
           buffers: tensors that no optimizer can train; frozen: parameters that it does not.
    """

    version: str = ""
    copies: int = 1
    tensors: list[LocalTensor] = field(default_factory=list)
    groups: dict[GroupKey, object] = field(default_factory=dict)
    objects: dict[str, object] = field(default_factory=dict)
    rank_objects: dict[str, dict[str, object]] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    model: Path | None = None
    optimizer: Path | None = None
    flat: bool = False
    numbers: dict[str, int] = field(default_factory=dict)
    numbered: dict[object, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()


@dataclass(slots=True)
class _Read:
    """What one folder holds, its numbered states not named yet."""

    order: list[str]
    counts: Counter[str]
    tensors: list[tuple[Role, StoredTensor]]
    numbers: list[tuple[Role, object, str]] = field(default_factory=list)


def collect(folder: Folder, chunks: ChunkReader) -> Collected:
    """Read all folders of a checkpoint.

    Raises: ReshardError[ambiguous-optimizer-ids | unsupported-dcp], and what reading `.metadata`,
            chunks, and objects raises.
    """
    out = Collected()
    reads = [_Part(part, chunks, out).read() for part in folder.parts]
    named = _names_of_numbers(reads, out, str(folder.root))
    out.numbered.update(named.items())
    for read in reads:
        for role, stored in read.tensors:
            name = named[role.number] if role.number is not None else role.name
            coord = _coord(out, read, stored, name) if out.copies > 1 else ()
            fragments = chunks.fragments(stored)
            out.tensors.append(
                LocalTensor(name, role.state, coord, stored.shape, stored.dtype, fragments)
            )
        for role, value, file in read.numbers:
            name = named[role.number] if role.number is not None else role.name
            number = local_number(name, role.state, value, file)
            if number is None:
                raise AssertionError("a number was recognized before")
            out.tensors.append(number)
    _sort_parameters(out)
    return out


def _coord(out: Collected, read: _Read, stored: StoredTensor, name: str) -> Coord:
    """Which copy of a tensor this is; () for one that is stored once."""
    if name in out.aliases:
        return (("copy", 1),)
    if name in out.aliases.values() or read.counts[stored.name] > 1:
        return (("copy", stored.copy),)
    return ()


class _Part:
    """Reads one folder with `.metadata`."""

    def __init__(self, part: Part, chunks: ChunkReader, out: Collected) -> None:
        self._part = part
        self._chunks = chunks
        self._out = out
        self._metadata = read_metadata(part.path, shown=part.shown)
        self._names = Names(
            self._metadata.paths,
            dict.fromkeys(item.name for item in self._metadata.tensors),
            dict.fromkeys(item.name for item in self._metadata.objects),
            role=part.role,
            where=str(part.path),
        )

    def read(self) -> _Read:
        """Sort its tensors, and decode its objects."""
        out, names, metadata = self._out, self._names, self._metadata
        for file in metadata.files:
            self._chunks.know(file)
        out.version = out.version or metadata.version
        mark = read_mark(metadata.extra)
        out.copies = max(out.copies, metadata.copies, 2 if mark.aliases else 1)
        out.aliases.update(mark.aliases)
        tensors = [(_role(names, item.name, mark), item) for item in metadata.tensors]
        self._refuse_flat(metadata)
        if any(role.state in ("param", "master") for role, _ in tensors):
            out.model = names.model
        for optimizer in names.optimizers[:1]:
            out.optimizer = optimizer
            depth = len(optimizer) + 1
            out.flat = any(
                len(path) == depth and str(path[-1]).startswith("state.")
                for path in map(names.path, (item.name for item in metadata.tensors))
            )
        for role, stored in tensors:
            if role.state == "extra":
                self._note_extra(stored)
        counts = Counter(item.name for item in metadata.tensors)
        read = _Read(_ordered(metadata, names), counts, tensors)
        self._read_objects(read)
        return read

    def _note_extra(self, stored: StoredTensor) -> None:
        """Keep the path of a tensor that belongs to no parameter, and its value if it counts."""
        path = self._names.path(stored.name)
        if len(path) > 1:
            self._out.paths[stored.name] = path
        whole = len(stored.chunks) == 1 and stored.dtype in _INTEGERS
        if whole and prod(stored.shape) == 1 and "step" in str(path[-1]):
            data = read_small(self._chunks.open(stored, stored.chunks[0]))
            self._out.numbers[stored.name] = int.from_bytes(data, "little", signed=True)

    def _read_objects(self, read: _Read) -> None:
        out, names = self._out, self._names
        for item in self._metadata.objects:
            value = self._chunks.object_of(item)
            group = names.group_key(item.name)
            if group is not None:
                out.groups.setdefault(group, value)
                continue
            state = names.state_of(item.name)
            if state is not None and local_number("", "", value, "") is not None:
                if all(role != state for role, _, _ in read.numbers):
                    read.numbers.append((state, value, item.file))
                continue
            path = names.path(item.name)
            if len(path) > 1:
                out.paths[item.name] = path
            kept = to_json(value, tensor=small_tensor)
            if out.objects.setdefault(item.name, kept) != kept:
                out.rank_objects.setdefault(item.writer, {})[item.name] = kept

    def _refuse_flat(self, metadata: Metadata) -> None:
        """Refuse the flat parameters of FSDP, which say nothing of what lies in them.

        Source: torch/distributed/fsdp/_state_dict_utils.py `_local_post_state_dict_hook`.
        """
        for stored in metadata.tensors:
            if str(self._names.path(stored.name)[-1]).rpartition(".")[2] in _FLAT:
                raise source_error(
                    "unsupported-dcp",
                    f"{self._part.path} holds the flat parameters of FSDP's `LOCAL_STATE_DICT`",
                    notes=[
                        f"`{stored.name}` is {list(stored.shape)} elements without names or shapes"
                    ],
                    helps=[
                        "load it where it was trained, and save it with `SHARDED_STATE_DICT`, or "
                        "`torch.distributed.checkpoint.state_dict.get_state_dict`"
                    ],
                )


def _role(names: Names, key: str, mark: Mark) -> Role:
    role = names.role(key)
    is_master = role.name in mark.master or mark.aliases.get(role.name) in mark.master
    return replace(role, state="master") if role.state == "param" and is_master else role


def _ordered(metadata: Metadata, names: Names) -> list[str]:
    """Keys of tensors in the order of the state dict, which `planner_data` keeps."""
    stored = dict.fromkeys(item.name for item in metadata.tensors)
    return [key for key in metadata.paths if key in stored] or list(stored)


def _names_of_numbers(reads: list[_Read], out: Collected, where: str) -> Mapping[int, str]:
    """The names of parameters that an optimizer counts; none where it names them."""
    states = [
        (role.number, stored.shape)
        for read in reads
        for role, stored in read.tensors
        if role.number is not None
    ]
    counted = [
        role.number for read in reads for role, _, _ in read.numbers if role.number is not None
    ]
    if not states and not counted:
        return {}
    parameters = list(_parameters(reads))
    by_name = dict(parameters)
    if all(str(number) in by_name for number in (*(n for n, _ in states), *counted)):
        return {int(name): name for name in by_name if name.isdecimal()}
    groups = [
        [number for number in params if isinstance(number, int)]
        for params in _params_lists(out.groups)
    ]
    if not groups:
        groups = [sorted({*(number for number, _ in states), *counted})]
    shapes = {number: shape for number, shape in states if shape}
    return names_of_numbers(groups, shapes, parameters, where)


def _parameters(reads: list[_Read]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of what an optimizer may train, in the order of the model."""
    for read in reads:
        found = {
            stored.name: (role.name, stored.shape)
            for role, stored in read.tensors
            if role.state in ("param", "master") and stored.dtype in _FLOATS
        }
        for key in read.order:
            if key in found:
                yield found[key]


def _params_lists(groups: Mapping[GroupKey, object]) -> Iterator[list[object]]:
    """The `params` of every group, in their order."""
    numbered: dict[int, list[object]] = {}
    for key, value in groups.items():
        if key.owner is None and isinstance(value, list):
            for index, group in enumerate(value):
                if isinstance(group, dict) and isinstance(group.get("params"), list):
                    numbered[index] = group["params"]
        elif isinstance(key.owner, int) and key.key == "params" and isinstance(value, list):
            numbered[key.owner] = value
    for index in sorted(numbered):
        yield numbered[index]


def _sort_parameters(out: Collected) -> None:
    """Tell buffers and frozen parameters from those that are trained."""
    trained = {item.name for item in out.tensors if item.state not in ("param", "extra")}
    trained.update(out.aliases)
    params = {item.name: item for item in out.tensors if item.state == "param"}
    out.buffers = tuple(name for name, item in params.items() if item.dtype not in _FLOATS)
    if trained:
        out.frozen = tuple(
            name for name, item in params.items() if item.dtype in _FLOATS and name not in trained
        )
