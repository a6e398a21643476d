"""The optimizer states of a legacy rank: by numbered ids, or from flat buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.distrib_optim import flat_states
from reshard.formats.megatron.groups import (
    GroupMembers,
    Parameter,
    Part,
    check_shape,
    optimizers_in,
    share_parameters,
)
from reshard.formats.megatron.legacy import EMBEDDING, Chunk, is_tied, local_tensor
from reshard.formats.megatron.modules import is_vocabulary, tied_names
from reshard.formats.megatron.ranks import DISTRIBUTED, RankFile, Ranks
from reshard.formats.megatron.self_check import Sampler
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.run.states import MASTER, STEP
from reshard.storage.numbers import number_bytes
from reshard.storage.torch_file import TensorRef, open_torch_file

_INNER = ("optimizer", "optimizer_state_dict")
_MASTERS = ("fp32_from_fp16_params", "fp32_from_fp16")


State = tuple[Parameter, LocalTensor]
"""A state of a parameter of one rank, as it is stored, and of no place yet."""


def states_of(
    rank: RankFile, chunks: Sequence[Chunk], ranks: Ranks, folder: Path, sampler: Sampler
) -> tuple[list[State], list[GroupMembers]]:
    """Every optimizer state of a rank, and its param groups.

    Raises: ReshardError[ambiguous-optimizer-ids | buffer-mismatch | unknown-optimizer |
            unsupported-optimizer].
    """
    if rank.strange:
        raise source_error(
            "unsupported-optimizer",
            f"{folder / Path(rank.file).parent} keeps its optimizer in a form that is not read",
            notes=[
                f"found `{'`, `'.join(rank.strange[:3])}`",
                "`layer_wise_optimizer_*.pt` and `optim.pt` hold the parts of data-parallel ranks",
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
        Parameter(index, name, ref, _checked(name, ref, rank, ranks))
        for index, chunk in enumerate(chunks)
        for name, ref in chunk.parameters.items()
    ]
    parts = [_part(item, i, rank) for i, item in enumerate(optimizers_in(optimizer))]
    flat_path = (folder / rank.file).with_name(DISTRIBUTED)
    flat = open_torch_file(flat_path).root if flat_path.exists() else None
    states: list[State] = []
    groups: list[GroupMembers] = []
    for index, (part, members) in enumerate(
        zip(parts, share_parameters(parts, parameters, rank.file), strict=True)
    ):
        groups += members
        states += _numbered(part.states, members, rank.file)
        states += _masters(part, members, rank.file)
        if flat is not None:
            parameters_of = sorted((p for g in members for p in g.members), key=parameters.index)
            states += _flat(flat, index, len(parts), parameters_of, rank, ranks, folder, sampler)
        states += _group_steps(members, rank.file)
    if flat is None and groups and not any(tensor.state != STEP for _, tensor in states):
        raise _lost(rank, folder)
    return states, groups


def _checked(name: str, ref: TensorRef, rank: RankFile, ranks: Ranks) -> int:
    """Elements of a weight that are no padding of the vocabulary."""
    if not is_vocabulary(name):
        return ref.numel
    rows = ranks.args.checked_rows(ref.shape[0] * ranks.tp) - rank.tp * ref.shape[0]
    return max(0, min(rows, ref.shape[0])) * (ref.numel // max(1, ref.shape[0]))


def _part(optimizer: object, index: int, rank: RankFile) -> Part:
    if not isinstance(optimizer, dict):
        raise _unknown(rank.file, f"optimizer {index} is a {type(optimizer).__name__}")
    inner = next((optimizer[key] for key in _INNER if key in optimizer), optimizer)
    groups = inner.get("param_groups") if isinstance(inner, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise _unknown(rank.file, f"optimizer {index} has no param groups")
    table = inner.get("state", {})
    if not isinstance(table, dict) or not all(isinstance(v, Mapping) for v in table.values()):
        raise _unknown(rank.file, f"the `state` of optimizer {index} is no table of tables")
    masters = next((optimizer[key] for key in _MASTERS if key in optimizer), None)
    if masters is not None and (
        not isinstance(masters, list)
        or len(masters) != len(groups)
        or not all(isinstance(items, list) for items in masters)
    ):
        raise _unknown(rank.file, f"the masters of optimizer {index} are not lists by group")
    return Part(tuple(groups), table, None if masters is None else tuple(map(tuple, masters)))


def _numbered(
    table: Mapping[object, Mapping[object, object]], groups: Sequence[GroupMembers], file: str
) -> Iterator[State]:
    numbers = set()
    for group in groups:
        if len(group.ids) != len(group.members):
            continue
        for number, parameter in zip(group.ids, group.members, strict=True):
            numbers.add(number)
            for name, value in table.get(number, {}).items():
                if isinstance(value, TensorRef):
                    yield parameter, local_tensor(parameter.name, str(name), value, file)
                elif isinstance(value, (int, float)) and not isinstance(value, bool):
                    yield parameter, _number(parameter.name, str(name), value, file)
                elif value is not None:
                    raise _unknown(file, f"`{name}` of state {number} is no tensor and no number")
    extra = [key for key in table if key not in numbers]
    if extra:
        raise source_error(
            "ambiguous-optimizer-ids",
            f"{len(extra)} states of {file} have numbers that no param group lists",
            notes=[f"first: {extra[0]}"],
            helps=["leave the optimizer out with `--states weights`"],
        )


def _masters(part: Part, groups: Sequence[GroupMembers], file: str) -> Iterator[State]:
    """fp32 copies of half-precision weights: one list for each group, of those that it has."""
    for masters, group in zip(part.masters or (), groups, strict=part.masters is not None):
        halves = [p for p in group.members if p.ref.dtype.itemsize == 2]
        if len(masters) != len(halves):
            raise _unknown(file, f"{len(masters)} masters for {len(halves)} weights")
        for master, parameter in zip(masters, halves, strict=True):
            if not isinstance(master, TensorRef):
                raise _unknown(file, f"the master of `{parameter.name}` is no tensor")
            check_shape(parameter, master.shape, MASTER, -1, file)
            yield parameter, local_tensor(parameter.name, MASTER, master, file)


def _flat(
    flat: object,
    index: int,
    count: int,
    parameters: Sequence[Parameter],
    rank: RankFile,
    ranks: Ranks,
    folder: Path,
    sampler: Sampler,
) -> Iterator[State]:
    file = str(Path(rank.file).with_name(DISTRIBUTED))
    if (isinstance(flat, list) and len(flat) == count) or (
        isinstance(flat, dict) and count > 1 and index in flat and len(flat) == count
    ):
        root = flat[index]
    else:
        root = flat
    if root is None and count > 1:
        return  # the states of dense parameters are in the file of another expert-parallel rank
    ties = tied_names()
    shared = (*ties, *ties.values()) if is_tied(ranks) else ()
    if ranks.pp > 1 and ranks.args.integer("mtp_num_layers"):
        shared = (*shared, EMBEDDING)  # the stage that predicts several tokens has a copy
    yield from flat_states(
        root,
        parameters,
        ranks.args,
        folder=folder,
        file=file,
        weights_file=rank.file,
        sampler=sampler,
        first_stage=rank.pp == 0,
        shared=shared,
    )


def _group_steps(groups: Sequence[GroupMembers], file: str) -> Iterator[State]:
    """Fused optimizers count steps by group."""
    for group in groups:
        step = group.group.get(STEP)
        for parameter in group.members:
            if isinstance(step, TensorRef) and step.shape == ():
                yield parameter, local_tensor(parameter.name, STEP, step, file)
            elif isinstance(step, (int, float)) and not isinstance(step, bool):
                yield parameter, _number(parameter.name, STEP, step, file)


def _number(name: str, state: str, value: float, file: str) -> LocalTensor:
    """A number that a file keeps itself, as a tensor."""
    dtype, data = number_bytes(value)
    return LocalTensor(name, state, (), (), dtype, (Fragment(0, 1, file, 0, literal=data),))


def _lost(rank: RankFile, folder: Path) -> ReshardError:
    return source_error(
        "missing-file",
        f"{folder / Path(rank.file).parent} has an optimizer without states",
        notes=[f"the states of a distributed optimizer are in `{DISTRIBUTED}` beside the model"],
        helps=[
            f"copy `{DISTRIBUTED}` of every rank",
            "or keep the weights with `--states weights`",
        ],
    )


def _unknown(file: str, why: str) -> ReshardError:
    return source_error(
        "unknown-optimizer",
        f"the optimizer in {file} is of a kind that is not known",
        notes=[why],
        helps=["leave it out with `--states weights`"],
    )
