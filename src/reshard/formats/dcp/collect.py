"""Everything that the folders of a checkpoint hold: tensors by parameter and state, and objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.dcp.folders import Folder, Part
from reshard.formats.dcp.form import left_attributes, read_mark
from reshard.formats.dcp.names import GroupKey, Names, Path, Role
from reshard.formats.dcp.tied import find_tied
from reshard.formats.dcp.wrappers import Called, called
from reshard.plan.catalog import Catalog, Coord, Left, LocalTensor
from reshard.run.numbering import looks_sorted, names_of_numbers, running_statistics
from reshard.run.states import EXTRA, PARAM, WEIGHTS
from reshard.storage.dcp_chunks import ChunkReader, SubclassError
from reshard.storage.dcp_metadata import Metadata, StoredTensor, read_metadata, refuse_torch_dist
from reshard.storage.kept import encode
from reshard.storage.numbers import literal_tensor, plain_number
from reshard.storage.torch_file import read_small

Shape = tuple[int, ...]

_FLAT = ("_flat_param", "flat_param")
_FLOATS = (DType.F64, DType.F32, DType.F16, DType.BF16)
NOT_STATES = (*WEIGHTS, EXTRA)
_SETTING = 4096
"""Elements of the largest hyper-parameter."""
_INTEGERS = (DType.I64, DType.I32, DType.I16, DType.U8)


@dataclass(slots=True)
class Collected:
    """What the folders hold.

    Args:  copies: how often the most copied tensor is stored.
           groups: hyper-parameters by where they stand, as their pickles have them.
           objects: all other objects by key, as tagged JSON.
           rank_objects: by the file that lists them, those that differ from the first rank's.
           paths: by key, of objects and of tensors that belong to no parameter.
           model, optimizer: where their state dicts stand; None where there is none.
           optimizer_of: the path of the optimizer that a parameter has states of.
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
    optimizer_of: dict[str, Path] = field(default_factory=dict)
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
        return tuple(t for t in self.tensors if not self.withheld or t.state in NOT_STATES)

    def numbered_groups(self) -> list[dict[object, object]]:
        """The groups that an optimizer numbers, in their order, as they were."""
        return [group for _, group in self.groups_of_optimizers()]

    def groups_of_optimizers(self) -> list[tuple[Path, dict[object, object]]]:
        """The same groups, each with the path of its optimizer."""
        out: dict[tuple[str, int], tuple[Path, dict[object, object]]] = {}
        for key, value in self.groups.items():
            path = str(key.optimizer)
            if key.owner is None and isinstance(value, list):
                for index, group in enumerate(value):
                    if isinstance(group, dict):
                        out.setdefault((path, index), (key.optimizer, {}))[1].update(group)
            elif isinstance(key.owner, int):
                out.setdefault((path, key.owner), (key.optimizer, {}))[1][key.key] = value
        return [out[key] for key in sorted(out)]

    def listed_name(self, item: object) -> object:
        """The name of a parameter that a group lists, by its number or its name."""
        if isinstance(item, str):
            return self.called.of(item, "")
        return self.numbered.get(item, item)


def _items(group: Mapping[object, object], key: str) -> list[object]:
    """A list of a group; an empty one where it has none."""
    value = group.get(key)
    return value if isinstance(value, list) else []


@dataclass(slots=True)
class _Content:
    """What one folder holds, its numbered states not named yet.

    Args:  order: keys of its tensors in the order of the state dict; is_ordered: whether it is
                  known.
           tensors, numbers: with their roles; a number with the file that has it.
           is_marked: whether reshard wrote it.
    """

    order: list[str]
    is_ordered: bool
    is_marked: bool
    tensors: list[tuple[Role, StoredTensor]]
    paths: Mapping[str, Path]
    numbers: list[tuple[Role, tuple[DType, bytes], str]] = field(default_factory=list)

    def of(self, *states: str, dtypes: Sequence[DType] = ()) -> Iterator[tuple[Role, StoredTensor]]:
        """The tensors of some states, and of some types if they are given."""
        for role, stored in self.tensors:
            if role.state in states and (not dtypes or stored.dtype in dtypes):
                yield role, stored

    def without_numbered(self) -> _Content:
        """The same without states of parameters that have only a number."""
        tensors = [item for item in self.tensors if item[0].number is None]
        numbers = [item for item in self.numbers if item[0].number is None]
        return replace(self, tensors=tensors, numbers=numbers)


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
    contents = [_read(part, chunks, out) for part in folder.parts]
    out.aliases.update(_tied(contents, out, chunks, config or {}))
    apart = weights.tensors if weights else ()
    if weights:
        out.aliases.update(weights.aliases or {})
        out.names_of = weights.names_of
    _name_numbers(contents, out, apart, str(folder.root))
    if out.withheld:
        contents = [content.without_numbered() for content in contents]
    described = _described(contents, out)
    names = [role.name for content in contents for role, _ in content.of(*WEIGHTS)]
    names += [item.name for item in apart]
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
    _count_copies(contents, out)
    shapes = {
        out.name_of(role): stored.shape
        for content in contents
        for role, stored in content.of(*WEIGHTS)
    }
    for item in apart:
        name = out.called.of(item.name, item.state)
        shapes[name] = item.shape
        out.tensors.append(replace(item, name=name))
    _refuse_shapeless(contents, out, str(folder.root))
    for content in contents:
        _add_tensors(out, content, chunks, shapes)
    _sort_parameters(out)
    return out


# One folder.


def _read(part: Part, chunks: ChunkReader, out: Collected) -> _Content:
    """Sort the tensors of a folder with `.metadata`, and decode its objects."""
    metadata = read_metadata(part.path, shown=part.shown)
    refuse_torch_dist(part.path, metadata)
    keys = dict.fromkeys(item.name for item in metadata.tensors)
    objects = dict.fromkeys(item.name for item in metadata.objects)
    names = Names(metadata.paths, keys, objects, role=part.role, where=str(part.path))
    for file in metadata.files:
        chunks.know(file)
    mark = read_mark(metadata.extra)
    for key in left_attributes(metadata.extra):
        out.left.append(Left(metadata.files[0], key, "it is no attribute that DCP knows"))
    out.version = out.version or metadata.version
    out.copies = max(out.copies, metadata.copies)
    out.aliases.update(mark.aliases)
    out.names_of = out.names_of or mark.names_of
    _refuse_flat(part, names, keys, metadata)
    tensors = [(mark.role(names.role(item.name)), item) for item in metadata.tensors]
    if any(role.state in WEIGHTS for role, _ in tensors):
        out.model = names.model
    for optimizer in names.optimizers[:1]:
        out.optimizer = optimizer
        paths = [names.path(key) for key in keys]
        depth = len(optimizer) + 1
        out.flat = any(len(p) == depth and str(p[-1]).startswith("state.") for p in paths)
    out.suffixed = out.suffixed or bool(names.suffixed)
    kept = []
    for role, stored in tensors:
        group = names.group_key(stored.name)
        is_setting = len(stored.chunks) == 1 and prod(stored.shape) <= _SETTING
        if group is not None and is_setting:  # a learning rate
            out.groups.setdefault(group, chunks.open(stored, stored.chunks[0]))
            continue
        kept.append((role, stored))
        if role.state == EXTRA:
            _note_extra(stored, names.path(stored.name), chunks, out)
    content = _Content(
        [key for key in metadata.paths if key in keys] or list(keys),
        bool(metadata.paths),
        mark.is_there,
        kept,
        {stored.name: names.path(stored.name) for _, stored in kept},
    )
    _read_objects(content, metadata, names, chunks, out)
    return content


def _note_extra(stored: StoredTensor, path: Path, chunks: ChunkReader, out: Collected) -> None:
    """Keep the path of a tensor that belongs to no parameter, and its value if it counts."""
    if len(path) > 1:
        out.paths[stored.name] = path
    whole = len(stored.chunks) == 1 and stored.dtype in _INTEGERS
    if whole and prod(stored.shape) == 1 and "step" in str(path[-1]):
        data = read_small(chunks.open(stored, stored.chunks[0]))
        out.numbers[stored.name] = int.from_bytes(data, "little", signed=True)


def _read_objects(
    content: _Content, metadata: Metadata, names: Names, chunks: ChunkReader, out: Collected
) -> None:
    for item in metadata.objects:
        value = chunks.object_of(item)
        path, group = names.path(item.name), names.group_key(item.name)
        state = names.state_of(item.name)
        number = None if isinstance(value, bool) else plain_number(value)
        if group is not None:
            out.groups.setdefault(group, value)
        elif state is not None and number is not None:
            if all(role != state for role, _, _ in content.numbers):
                content.numbers.append((state, number, item.file))
        else:
            if len(path) > 1:
                out.paths[item.name] = path
            kept = encode(value)
            if out.objects.setdefault(item.name, kept) != kept:
                out.rank_objects.setdefault(item.writer, {})[item.name] = kept


def _refuse_flat(part: Part, names: Names, keys: Iterable[str], metadata: Metadata) -> None:
    """Refuse the flat parameters of FSDP, which say nothing of what lies in them.

    Source: torch/distributed/fsdp/_state_dict_utils.py `_local_post_state_dict_hook`.
    """
    for key in keys:
        if str(names.path(key)[-1]).rpartition(".")[2] in _FLAT:
            shape = next(list(item.shape) for item in metadata.tensors if item.name == key)
            raise source_error(
                "unsupported-dcp",
                f"{part.path} holds the flat parameters of FSDP's `LOCAL_STATE_DICT`",
                notes=[f"`{key}` is {shape} elements without names or shapes"],
                helps=[
                    "load it where it was trained, and save it with `SHARDED_STATE_DICT`, or "
                    "`torch.distributed.checkpoint.state_dict.get_state_dict`"
                ],
            )


# All of them.


def _refuse_shapeless(contents: Sequence[_Content], out: Collected, where: str) -> None:
    """Refuse master weights that were laid flat, each without the shape of its parameter.

    Source: OLMo-core optim/moe_optimizer.py `OLMoDDPOptimizer`.
    """
    tensors = [item for content in contents for item in content.tensors if item[0].state != EXTRA]
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


def _add_tensors(
    out: Collected, content: _Content, chunks: ChunkReader, shapes: Mapping[str, Shape]
) -> None:
    """Add the tensors of a folder.

    Args:  shapes: of the parameters, by name.
    """
    counts = Counter(stored.name for _, stored in content.tensors)
    for role, stored in content.tensors:
        name, state = out.name_of(role), role.state
        if role.optimizer is not None:
            out.optimizer_of.setdefault(name, role.optimizer)
        if state not in NOT_STATES and stored.shape not in (shapes.get(name, stored.shape), ()):
            out.unlike[stored.name] = name, state
            out.paths[stored.name] = content.paths[stored.name]
            name, state = stored.name, EXTRA
        try:
            fragments = chunks.fragments(stored)
        except SubclassError as error:
            if state in WEIGHTS:
                raise
            out.withheld = out.withheld or error.diagnostics
            continue
        coord: Coord = ()  # which copy it is, where it is stored several times
        if name in out.aliases:
            coord = (("copy", out.alias_copies[name] + stored.copy),)
        elif name in out.aliases.values() or counts[stored.name] > 1:
            coord = (("copy", stored.copy),)
        if out.copies == 1:
            coord = ()
        out.tensors.append(LocalTensor(name, state, coord, stored.shape, stored.dtype, fragments))
    for role, number, file in content.numbers:
        if role.optimizer is not None:
            out.optimizer_of.setdefault(out.name_of(role), role.optimizer)
        out.tensors.append(literal_tensor(out.name_of(role), role.state, number, file))


def _count_copies(contents: Sequence[_Content], out: Collected) -> None:
    """Number the copies of tied weights: those under each name one after the other."""
    stored = Counter(out.name_of(role) for content in contents for role, _ in content.of(*WEIGHTS))
    copies: dict[str, int] = {}
    for alias, name in out.aliases.items():
        out.alias_copies[alias] = copies.setdefault(name, stored[name])
        copies[name] += stored[alias]
    out.copies = max(out.copies, *copies.values(), 1)


def _described(contents: Sequence[_Content], out: Collected) -> list[str]:
    """The names that the optimizer has for parameters."""
    names = [
        role.name
        for content in contents
        for role in (*(role for role, _ in content.tensors), *(r for r, _, _ in content.numbers))
        if role.number is None and role.state not in NOT_STATES
    ]
    for group in out.numbered_groups():
        names += [str(name) for key in ("params", "param_names") for name in _items(group, key)]
    names += [key.owner for key in out.groups if isinstance(key.owner, str)]
    return list(dict.fromkeys(name for name in names if not name.isdecimal()))


def _name_numbers(
    contents: Sequence[_Content], out: Collected, apart: Sequence[LocalTensor], where: str
) -> None:
    """Find the names of parameters that an optimizer counts; none where it names them.

    Args:  apart: weights of files that keep no order of the model.
    """
    shapes: dict[int, Shape] = {}
    wanted: set[int] = set()
    for content in contents:
        wanted |= {role.number for role, _, _ in content.numbers if role.number is not None}
        for role, stored in content.tensors:
            if role.number is not None:
                wanted.add(role.number)
                shapes |= {role.number: stored.shape} if stored.shape else {}
    if not wanted:
        return
    groups = out.numbered_groups()
    stated: dict[object, str] = {
        number: str(name)
        for group in groups
        for number, name in zip(_items(group, "params"), _items(group, "param_names"), strict=False)
        if isinstance(number, int)
    }
    if wanted <= stated.keys():
        out.numbered.update(stated)
        return
    parameters = [item for item in _parameters(contents) if item[0] not in out.aliases]
    parameters += [(item.name, item.shape) for item in apart if item.dtype in _FLOATS]
    by_name = dict(parameters)
    if all(str(number) in by_name for number in wanted):
        out.numbered.update((int(name), name) for name in by_name if name.isdecimal())
        return
    numbers = [
        [number for number in _items(group, "params") if isinstance(number, int)]
        for group in groups
        if isinstance(group.get("params"), list)
    ]
    is_ordered = all(content.is_ordered for content in contents) and not apart
    is_ordered = is_ordered and not looks_sorted([name for name, _ in parameters])
    try:
        names = names_of_numbers(
            numbers or [sorted(wanted)], shapes, parameters, where, is_ordered=is_ordered
        )
    except ReshardError as error:
        out.withheld = error.diagnostics
        return
    out.numbered.update(names.items())


def _parameters(contents: Sequence[_Content]) -> Iterator[tuple[str, Shape]]:
    """Name and shape of what an optimizer may train, in the order of the model."""
    for content in contents:
        known = {
            stored.name: (role.name, stored.shape)
            for role, stored in content.of(*WEIGHTS, dtypes=_FLOATS)
        }
        yield from (known[key] for key in content.order if key in known)


def _tied(
    contents: Sequence[_Content],
    out: Collected,
    chunks: ChunkReader,
    config: Mapping[str, object],
) -> dict[str, str]:
    """Other names of tied weights, as the dict of the model has them."""
    if any(content.is_marked for content in contents):
        return {}  # what reshard wrote says which names are tied
    weights = [
        (role.name, stored)
        for content in contents
        for role, stored in content.of(*WEIGHTS, dtypes=_FLOATS)
        if stored.copy == 0
    ]
    names = called([name for name, _ in weights], _described(contents, out))
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
    trained |= {*out.listed, *out.aliases}
    statistics = running_statistics(params) - trained
    out.buffers = tuple(
        name for name, item in params.items() if item.dtype not in _FLOATS or name in statistics
    )
    if trained and not fused:
        known = {*trained, *out.buffers}
        out.frozen = tuple(name for name in params if name not in known)
