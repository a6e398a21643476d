"""The optimizer states of a legacy rank: by number, or from flat buffers.

An optimizer counts its parameters group by group; a group takes its parameters in the order of
`named_parameters`. Which parameters a group has follows from its settings.
Source: megatron/core/optimizer/__init__.py `get_megatron_optimizer` (core 0.6 to 0.16): one
optimizer for the dense parameters, one for experts over several ranks; with overlapping gathers of
parameters, one more for the first model chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.buffers import COALESCED, Member, Part, no_way, stored_buffers
from reshard.formats.megatron.groups import belongs, optimizers_in
from reshard.formats.megatron.legacy import Chunk, is_tied
from reshard.formats.megatron.modules import is_expert, is_vocabulary, tied_names
from reshard.formats.megatron.ranks import DISTRIBUTED, RankFile, Ranks
from reshard.models.megatron_arguments import EMBEDDING
from reshard.plan.catalog import Fragment, Left, LocalTensor
from reshard.run.numbering import names_of_numbers
from reshard.run.states import MASTER, STEP
from reshard.storage.kept import local_tensor
from reshard.storage.numbers import number_bytes
from reshard.storage.torch_file import TensorRef, open_torch_file
from reshard.store.source_files import SourceFiles

_INNER = ("optimizer", "optimizer_state_dict")
_MASTERS = ("fp32_from_fp16_params", "fp32_from_fp16")
_WEIGHTS_ALONE = "leave the optimizer out with `--states weights`"
_NO_PARAMETER = "exclude what is no parameter with `--leave-out NAME`"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of one rank.

    Args:  chunk: the model chunk that has it.  unpadded: elements that its master must round to.
    """

    chunk: int
    name: str
    weight: LocalTensor = field(compare=False)
    unpadded: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Members:
    """A param group with its parameters, in its own order.

    Args:  numbers: of their states; empty where the file does not number them.
    """

    group: Mapping[str, object]
    numbers: tuple[int, ...]
    parameters: tuple[Parameter, ...]


State = tuple[Parameter, LocalTensor]
"""A state of a parameter of one rank, as it is stored, and of no place yet."""


def states_of(
    rank: RankFile, chunks: Sequence[Chunk], ranks: Ranks, files: SourceFiles
) -> tuple[list[State], list[Members]]:
    """Every optimizer state of a rank, and its param groups.

    Raises: ReshardError[ambiguous-optimizer-ids | buffer-mismatch | unknown-optimizer |
            unsupported-optimizer].
    """
    folder = (files.root / rank.file).parent
    if rank.strange:
        raise source_error(
            "unsupported-optimizer",
            f"{folder} stores its optimizer in a form that reshard does not read",
            notes=[
                f"found `{'`, `'.join(rank.strange[:3])}`",
                "`layer_wise_optimizer_*.pt` and `optim.pt` contain the shards of data-parallel "
                "ranks",
            ],
            helps=[
                "load it in Megatron, and save it as `torch_dist`",
                "or keep the weights with `--states weights`",
            ],
        )
    optimizer = rank.root.get("optimizer")
    if optimizer is None:
        return [], []
    parameters = [
        Parameter(index, name, weight, _unpadded(weight, rank, ranks))
        for index, chunk in enumerate(chunks)
        for name, weight in chunk.parameters.items()
    ]
    optimizers = [_Optimizer(item, i, rank.file) for i, item in enumerate(optimizers_in(optimizer))]
    path = folder / DISTRIBUTED
    flat = open_torch_file(path).root if path.exists() else None
    states: list[State] = []
    groups: list[Members] = []
    shares = _shares(optimizers, parameters, rank.file)
    for index, (item, members) in enumerate(zip(optimizers, shares, strict=True)):
        groups += members
        states += item.numbered(members)
        states += item.masters(members)
        if flat is not None:
            of_one = {parameter for group in members for parameter in group.parameters}
            ordered = [parameter for parameter in parameters if parameter in of_one]
            states += _flat(flat, (index, len(optimizers)), ordered, rank, ranks, files)
        states += _group_steps(members, rank.file)
    if flat is None and groups and not any(tensor.state != STEP for _, tensor in states):
        raise source_error(
            "missing-file",
            f"{folder} has an optimizer without states",
            notes=[
                f"the states of a distributed optimizer are in `{DISTRIBUTED}` beside the model"
            ],
            helps=[
                f"copy `{DISTRIBUTED}` of every rank",
                "or keep the weights with `--states weights`",
            ],
        )
    return states, groups


def _unpadded(weight: LocalTensor, rank: RankFile, ranks: Ranks) -> int:
    """Elements of a weight that are no padding of the vocabulary for certain."""
    if not is_vocabulary(weight.name):
        return weight.numel
    rows = weight.shape[0]
    return ranks.args.unpadded(rows * ranks.tp, rank.tp * rows, weight.shape)


class _Optimizer:
    """One optimizer as it is stored.

    Args:  index: among several.
    """

    def __init__(self, tree: object, index: int, file: str) -> None:
        self.file = file
        if not isinstance(tree, dict):
            raise self._unknown(f"optimizer {index} is a {type(tree).__name__}")
        inner = next((tree[key] for key in _INNER if key in tree), tree)
        groups = inner.get("param_groups") if isinstance(inner, dict) else None
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            raise self._unknown(f"optimizer {index} has no param groups")
        self.groups: list[Mapping[str, object]] = groups
        self.states = inner.get("state", {})
        if not isinstance(self.states, dict) or not all(
            isinstance(value, Mapping) for value in self.states.values()
        ):
            raise self._unknown(f"the `state` of optimizer {index} is no table of tables")
        self._masters = next((tree[key] for key in _MASTERS if key in tree), None)
        if self._masters is not None and (
            not isinstance(self._masters, list)
            or len(self._masters) != len(self.groups)
            or not all(isinstance(items, list) for items in self._masters)
        ):
            raise self._unknown(f"the masters of optimizer {index} are not lists by group")

    def numbered(self, groups: Sequence[Members]) -> Iterator[State]:
        """The states that are listed by the numbers of parameters."""
        numbers = set()
        for group in groups:
            if len(group.numbers) != len(group.parameters):
                continue
            for number, parameter in zip(group.numbers, group.parameters, strict=True):
                numbers.add(number)
                for name, value in self.states.get(number, {}).items():
                    state = _state(parameter.name, str(name), value, self.file)
                    if state is not None:
                        yield parameter, state
                    elif value is not None:
                        why = f"`{name}` of state {number} is no tensor and no number"
                        raise self._unknown(why)
        extra = [key for key in self.states if key not in numbers]
        if extra:
            raise _ambiguous(
                f"{len(extra)} states of {self.file} have numbers that no param group lists",
                f"first: {extra[0]}",
            )

    def masters(self, groups: Sequence[Members]) -> Iterator[State]:
        """fp32 copies of half-precision weights: one list for each group, of those that it has."""
        if self._masters is None:
            return
        for masters, group in zip(self._masters, groups, strict=True):
            halves = [p for p in group.parameters if p.weight.dtype.itemsize == 2]
            if len(masters) != len(halves):
                raise self._unknown(f"{len(masters)} masters for {len(halves)} weights")
            for master, parameter in zip(masters, halves, strict=True):
                if not isinstance(master, TensorRef):
                    raise self._unknown(f"the master of `{parameter.name}` is no tensor")
                _check_shape(parameter, master.shape, MASTER, -1, self.file)
                yield parameter, local_tensor(master, parameter.name, MASTER, (), self.file)

    def _unknown(self, why: str) -> ReshardError:
        return source_error(
            "unknown-optimizer",
            f"the optimizer in {self.file} is of an unknown kind",
            notes=[why],
            helps=["leave it out with `--states weights`"],
        )


def _flat(
    flat: object,
    number: tuple[int, int],
    parameters: Sequence[Parameter],
    rank: RankFile,
    ranks: Ranks,
    files: SourceFiles,
) -> Iterator[State]:
    """Every state of every parameter of one optimizer, of its buffers.

    Args:  number: of the optimizer, and how many there are.
           parameters: of the optimizer, in order, over all model chunks.
    Raises: ReshardError[buffer-mismatch].
    """
    file = str(Path(rank.file).with_name(DISTRIBUTED))
    index, count = number
    root = flat
    if (isinstance(flat, list) and len(flat) == count) or (
        isinstance(flat, dict) and count > 1 and index in flat and len(flat) == count
    ):
        root = flat[index]
    if root is None and count > 1:
        return  # the states of dense parameters are in the file of another expert-parallel rank
    if not isinstance(root, dict):
        raise no_way(file, "it holds no buffers")
    ties = tied_names()
    shared = (*ties, *ties.values()) if is_tied(ranks) else ()
    if ranks.pp > 1 and ranks.args.integer("mtp_num_layers"):
        shared = (*shared, EMBEDDING)  # the stage that predicts several tokens has a copy
    by_type: dict[tuple[int, DType], dict[str, Parameter]] = {}  # in order of appearance
    for parameter in parameters:
        kind = (parameter.chunk, parameter.weight.dtype)
        by_type.setdefault(kind, {})[parameter.name] = parameter
    buffers = stored_buffers(root, files.root)
    if len(buffers) != len(by_type):
        raise no_way(file, f"it has {len(buffers)} buffers, the weights ask for {len(by_type)}")
    for (key, buffer), ((chunk, dtype), group) in zip(buffers, by_type.items(), strict=True):
        if buffer is None:
            raise no_way(file, f"the tensors of buffer {key} have different lengths")
        if buffer.dtype not in (None, dtype):
            raise no_way(file, f"buffer {key} is of {buffer.dtype} parameters, not {dtype}")
        members = [
            Member(p.name, tuple(Part(p.weight, f, p.unpadded) for f in p.weight.fragments))
            for p in group.values()
        ]
        bucketed = rank.pp == chunk == 0  # later stages have one bucket
        ways = buffer.ways([members], ranks.args, shared, files, bucketed=bucketed)
        if len(ways) != 1:
            raise no_way(
                file,
                f"{len(ways)} known ways of laying {sum(m.numel for m in members)} elements of "
                f"parameters fit buffer {key} of {sum(buffer.lengths)} elements",
            )
        for member, _, tensor in buffer.states_of(ways[0], ranks.args, files):
            yield group[member.name], tensor


def _group_steps(groups: Sequence[Members], file: str) -> Iterator[State]:
    """Fused optimizers count steps by group."""
    for group in groups:
        step = group.group.get(STEP)
        for parameter in group.parameters:
            state = _state(parameter.name, STEP, step, file)
            if state is not None and state.shape == ():
                yield parameter, state


def _state(name: str, state: str, value: object, file: str) -> LocalTensor | None:
    """A tensor, or a number that a file keeps itself; None for what is neither."""
    if isinstance(value, TensorRef):
        return local_tensor(value, name, state, (), file)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        dtype, data = number_bytes(value)
        return LocalTensor(name, state, (), (), dtype, (Fragment(0, 1, file, 0, literal=data),))
    return None


def _shares(
    optimizers: Sequence[_Optimizer], parameters: Sequence[Parameter], file: str
) -> list[tuple[Members, ...]]:
    """The groups of every optimizer with their parameters.

    Raises: ReshardError[ambiguous-optimizer-ids] when the parameters can be shared in no way, or in
            several.
    """
    solutions: list[list[tuple[Members, ...]]] = []
    first: ReshardError | None = None
    for shares in _ways(len(optimizers), parameters):
        try:
            solutions.append(
                [_members(*pair, file) for pair in zip(optimizers, shares, strict=True)]
            )
        except ReshardError as error:
            first = first or error
    if len(solutions) == 1:
        return solutions[0]
    if first is not None and not solutions:
        raise first
    raise _ambiguous(
        f"{file} has {len(optimizers)} optimizers, and it is unknown which parameters each one has",
        f"{len(solutions)} ways of sharing {len(parameters)} parameters fit",
        "optimizers number their parameters and do not name them",
    )


def _ways(count: int, parameters: Sequence[Parameter]) -> Iterator[tuple[Sequence[Parameter], ...]]:
    """Ways in which Megatron shares parameters; none twice."""
    dense = [p for p in parameters if not is_expert(p.name)]
    experts = [p for p in parameters if is_expert(p.name)]
    head, tail = [p for p in dense if p.chunk == 0], [p for p in dense if p.chunk > 0]
    if count == 1:
        yield (parameters,)
    elif count == 2 and experts:
        yield dense, experts
    elif count == 2 and head and tail:
        yield head, tail
    elif count == 3 and head and tail and experts:
        yield head, tail, experts


def _members(
    optimizer: _Optimizer, parameters: Sequence[Parameter], file: str
) -> tuple[Members, ...]:
    """The groups of one optimizer with their parameters, whose shapes the states must have."""
    groups = optimizer.groups
    claims = [
        frozenset(p for p in parameters if belongs(group, p.name, len(p.weight.shape), groups))
        for group in groups
    ]
    remaining = list(parameters)
    out = []
    for group, claim in zip(groups, claims, strict=True):
        members = tuple(p for p in remaining if p in claim)
        params, numbers = group.get("params"), _numbers(group)
        if len(numbers) < len(members):
            members = _trained(optimizer, numbers, members, file) or members
        if params is not None and len(numbers) != len(members):
            raise _ambiguous(
                f"a param group of {file} numbers {len(numbers)} parameters where {len(members)} "
                "fit it",
                f"wd_mult={group.get('wd_mult')}, "
                f"is_expert_parallel={group.get('is_expert_parallel')}",
                f"first that fits: `{members[0].name}`" if members else "none fits",
                more=[_NO_PARAMETER] if len(numbers) < len(members) else (),
            )
        if params is None and claim and claims.count(claim) > 1:
            raise _ambiguous(
                f"{claims.count(claim)} param groups of {file} may have the same "
                f"{len(claim)} parameters",
                f"first: `{next(p.name for p in parameters if p in claim)}`",
            )
        remaining = [p for p in remaining if p not in claim]
        out.append(Members(group, numbers, members))
    if remaining:
        raise _ambiguous(
            f"{len(remaining)} parameters belong to no param group of {file}",
            f"first: `{remaining[0].name}`",
        )
    for item in out:
        for number, parameter in zip(item.numbers, item.parameters, strict=bool(item.numbers)):
            for name, value in optimizer.states.get(number, {}).items():
                if isinstance(value, TensorRef):
                    _check_shape(parameter, value.shape, str(name), number, file)
    return tuple(out)


def _numbers(group: Mapping[str, object]) -> tuple[int, ...]:
    """The parameters of a group, by number."""
    return tuple(i for i in _items(group.get("params")) if isinstance(i, int))


def _trained(
    optimizer: _Optimizer, numbers: Sequence[int], members: Sequence[Parameter], file: str
) -> tuple[Parameter, ...]:
    """Those of the parameters that a group numbers, where its states' shapes show which these are;
    none where they do not. What else fits the group is not trained.
    """
    listed = [n for group in optimizer.groups for n in _numbers(group)]
    if not numbers or set(optimizer.states) - {*listed}:
        return ()
    shapes = {
        number: value.shape
        for number in numbers
        for value in optimizer.states.get(number, {}).values()
        if isinstance(value, TensorRef) and value.shape
    }
    by_place = [(str(place), item.weight.shape) for place, item in enumerate(members)]
    try:
        names = names_of_numbers([numbers], shapes, by_place, file)
    except ReshardError:
        return ()
    return tuple(members[int(names[number])] for number in numbers)


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _check_shape(
    parameter: Parameter, shape: tuple[int, ...], state: str, number: int, file: str
) -> None:
    """Refuse a state whose shape is not its parameter's."""
    if shape not in (parameter.weight.shape, ()):
        raise _ambiguous(
            f"state {number} of the optimizer does not fit `{parameter.name}`",
            f"`{state}` has shape {list(shape)}, the parameter {list(parameter.weight.shape)}",
            f"in {file}; the optimizer numbers its parameters and does not name them",
        )


def _ambiguous(headline: str, *notes: str, more: Sequence[str] = ()) -> ReshardError:
    helps = [*more, _WEIGHTS_ALONE]
    return source_error("ambiguous-optimizer-ids", headline, notes=notes, helps=helps)


def unread_of(root: object, file: str) -> Iterator[Left]:
    """The entries of a file of buffers that are none, nor say how buffers were saved.

    Args:  root: of one optimizer, or of several.
    """
    for item in root if isinstance(root, list) else [root]:
        for key, value in item.items() if isinstance(item, dict) else ():
            if key != COALESCED and not (isinstance(key, int) and isinstance(value, dict)):
                yield Left(file, str(key), "it is no buffer of an optimizer")
