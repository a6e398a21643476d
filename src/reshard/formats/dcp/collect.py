"""Everything that the folders of a checkpoint hold: tensors by parameter and state, and objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.dcp.folders import Folder, Part
from reshard.formats.dcp.groups import listed, params_lists, plain_groups
from reshard.formats.dcp.mark import left_attributes, read_mark
from reshard.formats.dcp.names import GroupKey, Names, Path, Role
from reshard.formats.dcp.tied import find_tied
from reshard.formats.dcp.wrappers import Called, called
from reshard.plan.catalog import Catalog, Coord, Left, LocalTensor
from reshard.run.numbering import looks_sorted, names_of_numbers, running_statistics
from reshard.run.states import EXTRA, PARAM, WEIGHTS
from reshard.storage.dcp_chunks import ChunkReader, SubclassError
from reshard.storage.dcp_metadata import Metadata, StoredTensor, read_metadata
from reshard.storage.kept import encode
from reshard.storage.numbers import literal_tensor, plain_number
from reshard.storage.torch_file import read_small

Shapes = Mapping[str, tuple[int, ...]]

_FLAT = ("_flat_param", "flat_param")
_FLOATS = (DType.F64, DType.F32, DType.F16, DType.BF16)
NOT_STATES = (*WEIGHTS, EXTRA)
_SETTING = 4096
"""Elements of the largest hyper-parameter."""
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
           called: the names of parameters, by what the dicts of model and optimizer call them.
           unlike: states that have not the shape of their parameter (factored ones), by key:
                   parameter and state.
           listed: names of the parameters that the optimizer describes.
           suffixed: whether states stand next to the weights, under their names.
           withheld: why states are not listed, though they are stored.
           left: entries of `.metadata` that nothing reads.
           aliases: other names of tied weights, which are stored too.
           names_of: the format whose own names the weights have, as reshard noted it.
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
    called: Called = field(default_factory=Called)
    unlike: dict[str, tuple[str, str]] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    suffixed: bool = False
    withheld: tuple[Diagnostic, ...] = ()
    left: list[Left] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    alias_copies: dict[str, int] = field(default_factory=dict)
    names_of: str = ""
    buffers: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    def name_of(self, role: Role) -> str:
        """The name of the parameter that a tensor belongs to."""
        if role.state == EXTRA:
            return role.name
        if role.number is not None:
            return self.numbered[role.number]
        return self.called.of(role.name, PARAM if role.state in WEIGHTS else role.state)

    def listed_tensors(self) -> tuple[LocalTensor, ...]:
        """All tensors; only those that are no states, where states are withheld."""
        if not self.withheld:
            return tuple(self.tensors)
        return tuple(item for item in self.tensors if item.state in NOT_STATES)

    def listed_name(self, item: object) -> object:
        """The name of a parameter that a group lists, by its number or its name."""
        if isinstance(item, str):
            return self.called.of(item, "")
        return self.numbered.get(item, item)


@dataclass(slots=True)
class _Read:
    """What one folder holds, its numbered states not named yet."""

    order: list[str]
    counts: Counter[str]
    tensors: list[tuple[Role, StoredTensor]]
    numbers: list[tuple[Role, tuple[DType, bytes], str]] = field(default_factory=list)
    is_marked: bool = False
    is_ordered: bool = True
    paths: Mapping[str, Path] = field(default_factory=dict)


def collect(
    folder: Folder,
    chunks: ChunkReader,
    config: Mapping[str, object] | None = None,
    weights: Catalog | None = None,
    *,
    is_attribute: bool = False,
) -> Collected:
    """Read all folders of a checkpoint.

    Args:  config: of the model, where a file tells it.
           weights: those that lie in files of another form.
           is_attribute: see `called`.
    Raises: ReshardError[ambiguous-optimizer-ids | unsupported-dcp], and what reading `.metadata`,
            chunks, and objects raises.
    """
    out = Collected()
    reads = [_Part(part, chunks, out).read() for part in folder.parts]
    out.aliases.update(_tied(reads, out, chunks, config or {}))
    apart = weights.tensors if weights else ()
    out.aliases.update((weights.aliases if weights else None) or {})
    out.names_of = weights.names_of if weights else out.names_of
    _name_numbers(reads, out, apart, str(folder.root))
    for read in reads if out.withheld else ():
        read.tensors = [item for item in read.tensors if item[0].number is None]
        read.numbers = [item for item in read.numbers if item[0].number is None]
    described = _described(reads, out)
    names = [*_weights(reads), *(item.name for item in apart)]
    out.called = called(names, described, is_attribute=is_attribute)
    for number, name in tuple(out.numbered.items()):
        known = out.called.states if name in out.called.states else out.called.weights
        out.numbered[number] = known.get(name, name)
    out.listed.update(out.called.of(name, "") for name in described)
    out.listed.update(out.numbered.values())
    out.aliases = {
        out.called.of(alias, PARAM): out.called.of(stored, PARAM)
        for alias, stored in out.aliases.items()
    }
    _count_copies(reads, out)
    shapes = {
        out.name_of(role): stored.shape
        for read in reads
        for role, stored in read.tensors
        if role.state in WEIGHTS
    }
    for item in apart:
        name = out.called.of(item.name, item.state)
        shapes[name] = item.shape
        out.tensors.append(replace(item, name=name))
    _refuse_shapeless(reads, out, str(folder.root))
    for read in reads:
        _add_tensors(out, read, chunks, shapes)
    _sort_parameters(out)
    return out


def _refuse_shapeless(reads: list[_Read], out: Collected, where: str) -> None:
    """Refuse master weights that were laid flat, each without the shape of its parameter.

    Source: OLMo-core optim/moe_optimizer.py `OLMoDDPOptimizer`.
    """
    tensors = [item for read in reads for item in read.tensors if item[0].state != EXTRA]
    if not out.suffixed or any(len(stored.shape) > 1 for _, stored in tensors):
        return
    stored = next(stored for role, stored in tensors if role.state not in NOT_STATES)
    raise source_error(
        "unsupported-dcp",
        f"{where} holds the flat weights of OLMo-core's distributed optimizer",
        notes=[
            f"`{stored.name}` is {list(stored.shape)} elements, as all others are; nothing in "
            "`.metadata` tells the shapes of the parameters",
        ],
        helps=["load it where it was trained, and save the state dict of the model itself"],
    )


def _add_tensors(out: Collected, read: _Read, chunks: ChunkReader, shapes: Shapes) -> None:
    """Add the tensors of a folder.

    Args:  shapes: of the parameters, by name.
    """
    for role, stored in read.tensors:
        name = out.name_of(role)
        state = role.state
        if state not in NOT_STATES and stored.shape not in (shapes.get(name, stored.shape), ()):
            out.unlike[stored.name] = name, state
            out.paths[stored.name] = read.paths[stored.name]
            name, state = stored.name, EXTRA
        try:
            fragments = chunks.fragments(stored)
        except SubclassError as error:
            if state in WEIGHTS:
                raise
            out.withheld = out.withheld or error.diagnostics
            continue
        coord = _coord(out, read, stored, name) if out.copies > 1 else ()
        out.tensors.append(LocalTensor(name, state, coord, stored.shape, stored.dtype, fragments))
    for role, number, file in read.numbers:
        out.tensors.append(literal_tensor(out.name_of(role), role.state, number, file))


def _count_copies(reads: list[_Read], out: Collected) -> None:
    """Number the copies of tied weights: those under each name one after the other."""
    stored = Counter(
        out.name_of(role) for read in reads for role, _ in read.tensors if role.state in WEIGHTS
    )
    copies: dict[str, int] = {}
    for alias, name in out.aliases.items():
        out.alias_copies[alias] = copies.setdefault(name, stored[name])
        copies[name] += stored[alias]
    out.copies = max(out.copies, *copies.values(), 1)


def _weights(reads: list[_Read]) -> list[str]:
    """The names of the model's tensors, in their order."""
    return [role.name for read in reads for role, _ in read.tensors if role.state in WEIGHTS]


def _described(reads: list[_Read], out: Collected) -> list[str]:
    """The names that the optimizer has for parameters."""
    names = [
        role.name
        for read in reads
        for role in (*(role for role, _ in read.tensors), *(role for role, _, _ in read.numbers))
        if role.number is None and role.state not in NOT_STATES
    ]
    for group in plain_groups(out.groups):
        names += [str(name) for key in ("params", "param_names") for name in listed(group, key)]
    names += [key.owner for key in out.groups if isinstance(key.owner, str)]
    return list(dict.fromkeys(name for name in names if not name.isdecimal()))


def _coord(out: Collected, read: _Read, stored: StoredTensor, name: str) -> Coord:
    """Which copy of a tensor this is; () for one that is stored once."""
    if name in out.aliases:
        return (("copy", out.alias_copies[name] + stored.copy),)
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
        for key in left_attributes(metadata.extra):
            out.left.append(Left(metadata.files[0], key, "it is no attribute that DCP knows"))
        out.copies = max(out.copies, metadata.copies)
        out.aliases.update(mark.aliases)
        out.names_of = out.names_of or mark.names_of
        tensors = [(mark.role(names.role(item.name)), item) for item in metadata.tensors]
        self._refuse_flat(metadata)
        if any(role.state in WEIGHTS for role, _ in tensors):
            out.model = names.model
        for optimizer in names.optimizers[:1]:
            out.optimizer = optimizer
            depth = len(optimizer) + 1
            out.flat = any(
                len(path) == depth and str(path[-1]).startswith("state.")
                for path in map(names.path, (item.name for item in metadata.tensors))
            )
        out.suffixed = out.suffixed or bool(names.suffixed)
        tensors = [item for item in tensors if not self._note_group(item[1])]
        for role, stored in tensors:
            if role.state == EXTRA:
                self._note_extra(stored)
        counts = Counter(item.name for item in metadata.tensors)
        read = _Read(_ordered(metadata, names), counts, tensors, is_marked=mark.is_there)
        read.is_ordered = bool(metadata.paths)
        read.paths = {item.name: names.path(item.name) for _, item in tensors}
        self._read_objects(read)
        return read

    def _note_group(self, stored: StoredTensor) -> bool:
        """Keep a tensor that is a hyper-parameter (a learning rate); whether it is one."""
        group = self._names.group_key(stored.name)
        if group is None or len(stored.chunks) != 1 or prod(stored.shape) > _SETTING:
            return False
        self._out.groups.setdefault(group, self._chunks.open(stored, stored.chunks[0]))
        return True

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
            number = None if isinstance(value, bool) else plain_number(value)
            if state is not None and number is not None:
                if all(role != state for role, _, _ in read.numbers):
                    read.numbers.append((state, number, item.file))
                continue
            path = names.path(item.name)
            if len(path) > 1:
                out.paths[item.name] = path
            kept = encode(value)
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


def _ordered(metadata: Metadata, names: Names) -> list[str]:
    """Keys of tensors in the order of the state dict, which `planner_data` keeps."""
    stored = dict.fromkeys(item.name for item in metadata.tensors)
    return [key for key in metadata.paths if key in stored] or list(stored)


def _name_numbers(
    reads: list[_Read], out: Collected, apart: Sequence[LocalTensor], where: str
) -> None:
    """Find the names of parameters that an optimizer counts; none where it names them.

    Args:  apart: weights of files that keep no order of the model.
    """
    states = [
        (role.number, stored.shape)
        for read in reads
        for role, stored in read.tensors
        if role.number is not None
    ]
    counted = [
        role.number for read in reads for role, _, _ in read.numbers if role.number is not None
    ]
    wanted = {*(number for number, _ in states), *counted}
    if not wanted:
        return
    stated: dict[object, str] = {
        number: str(name)
        for group in plain_groups(out.groups)
        for number, name in zip(listed(group, "params"), listed(group, "param_names"), strict=False)
        if isinstance(number, int)
    }
    if wanted <= stated.keys():
        out.numbered.update(stated)
        return
    parameters = [item for item in _parameters(reads) if item[0] not in out.aliases]
    parameters += [(item.name, item.shape) for item in apart if item.dtype in _FLOATS]
    by_name = dict(parameters)
    if all(str(number) in by_name for number in wanted):
        out.numbered.update((int(name), name) for name in by_name if name.isdecimal())
        return
    groups = [
        [number for number in params if isinstance(number, int)]
        for params in params_lists(out.groups)
    ]
    if not groups:
        groups = [sorted(wanted)]
    shapes = {number: shape for number, shape in states if shape}
    is_ordered = all(read.is_ordered for read in reads) and not apart
    is_ordered = is_ordered and not looks_sorted([name for name, _ in parameters])
    try:
        found = names_of_numbers(groups, shapes, parameters, where, is_ordered=is_ordered)
    except ReshardError as error:
        out.withheld = error.diagnostics
        return
    out.numbered.update(found.items())


def _parameters(reads: list[_Read]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of what an optimizer may train, in the order of the model."""
    for read in reads:
        found = {
            stored.name: (role.name, stored.shape)
            for role, stored in read.tensors
            if role.state in WEIGHTS and stored.dtype in _FLOATS
        }
        for key in read.order:
            if key in found:
                yield found[key]


def _tied(
    reads: list[_Read], out: Collected, chunks: ChunkReader, config: Mapping[str, object]
) -> dict[str, str]:
    """Other names of tied weights, as the dict of the model has them."""
    if any(read.is_marked for read in reads):
        return {}  # what reshard wrote says which names are tied
    weights = [
        (role.name, stored)
        for read in reads
        for role, stored in read.tensors
        if role.state in WEIGHTS and stored.dtype in _FLOATS and stored.copy == 0
    ]
    names = called([name for name, _ in weights], _described(reads, out))
    states = {*names.states.values()}
    trained = {raw for raw, name in names.weights.items() if name in states}
    return find_tied(weights, trained, chunks, config)


def _sort_parameters(out: Collected) -> None:
    """Tell buffers and frozen parameters from those that are trained.

    What the optimizer lists is trained, with states or without. Where it has states of parameters
    that are stored under no name of the model (fused ones), those without states may be theirs.
    """
    params = {item.name: item for item in out.tensors if item.state in WEIGHTS}
    trained = {item.name for item in out.tensors if item.state not in NOT_STATES}
    fused = trained - params.keys()
    trained.update(out.listed)
    trained.update(out.aliases)
    statistics = running_statistics(params) - trained
    out.buffers = tuple(
        name for name, item in params.items() if item.dtype not in _FLOATS or name in statistics
    )
    if trained and not fused:
        known = {*trained, *out.buffers}
        out.frozen = tuple(name for name in params if name not in known)
