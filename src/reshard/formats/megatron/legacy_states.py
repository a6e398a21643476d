"""The optimizer states of a legacy rank: by numbered ids, or from flat buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.megatron.cuts import is_expert
from reshard.formats.megatron.distrib_optim import flat_states
from reshard.formats.megatron.legacy import EMBEDDING, OUTPUT, Chunk, is_tied
from reshard.formats.megatron.optimizer_ids import (
    GroupMembers,
    Parameter,
    assign_groups,
    check_shape,
)
from reshard.formats.megatron.ranks import RankFile, Ranks
from reshard.formats.megatron.self_check import Sampler
from reshard.storage.torch_file import TensorRef, open_torch_file

DISTRIBUTED = "distrib_optim.pt"


@dataclass(frozen=True, slots=True)
class State:
    """One state of one parameter of one rank.

    Args:  start: first element in the tensor of `ref`; the state has the parameter's shape.
           value: a number that the file keeps itself, instead of a tensor.
    """

    parameter: Parameter
    state: str
    ref: TensorRef | None
    start: int
    file: str
    value: float | int | None = None


def states_of(
    rank: RankFile, chunks: Sequence[Chunk], ranks: Ranks, folder: Path, sampler: Sampler
) -> tuple[list[State], list[GroupMembers]]:
    """Every optimizer state of a rank, and its param groups.

    Raises: ReshardError[ambiguous-optimizer-ids | buffer-mismatch | unknown-optimizer].
    """
    stored = rank.root.get("optimizer")
    if stored is None:
        return [], []
    parameters = [
        Parameter(index, name, ref)
        for index, chunk in enumerate(chunks)
        for name, ref in chunk.parameters.items()
    ]
    optimizers = stored if isinstance(stored, list) else [stored]
    flat_path = (folder / rank.file).with_name(DISTRIBUTED)
    flat = open_torch_file(flat_path).root if flat_path.exists() else None
    states: list[State] = []
    groups: list[GroupMembers] = []
    for index, optimizer in enumerate(optimizers):
        if not isinstance(optimizer, dict):
            raise _unknown(rank.file, f"optimizer {index} is a {type(optimizer).__name__}")
        mine = parameters
        if len(optimizers) > 1:
            mine = [p for p in parameters if is_expert(p.name) == bool(index)]
        inner = optimizer.get("optimizer", optimizer)
        if not isinstance(inner, dict) or not isinstance(inner.get("param_groups"), list):
            raise _unknown(rank.file, f"optimizer {index} has no param groups")
        assigned = assign_groups(inner["param_groups"], mine, rank.file)
        groups += assigned
        if "state" in inner:
            states += _numbered(inner["state"], assigned, rank.file)
        states += _masters(optimizer, assigned, rank.file)
        if flat is not None:
            root = flat[index] if isinstance(flat, list) else flat
            file = str(Path(rank.file).with_name(DISTRIBUTED))
            shared = (EMBEDDING, OUTPUT) if is_tied(ranks) else ()
            for item in flat_states(
                root,
                mine,
                ranks.args,
                file=file,
                weights_file=rank.file,
                sampler=sampler,
                first_stage=rank.pp == 0,
                shared=shared,
            ):
                states.append(State(item.parameter, item.state, item.ref, item.start, file))
        states += _group_steps(assigned, rank.file)
    return states, groups


def _numbered(table: object, assigned: Sequence[GroupMembers], file: str) -> Iterator[State]:
    if not isinstance(table, dict):
        raise _unknown(file, "its `state` is no table")
    seen = set()
    for group in assigned:
        for number, parameter in zip(group.ids, group.members, strict=True):
            entry = table.get(number)
            seen.add(number)
            if entry is None:
                continue
            if not isinstance(entry, Mapping):
                raise _unknown(file, f"state {number} is no table")
            for name, value in entry.items():
                if isinstance(value, TensorRef):
                    check_shape(parameter, value.shape, str(name), number, file)
                    yield State(parameter, str(name), value, 0, file)
                elif isinstance(value, (int, float)):
                    yield State(parameter, str(name), None, 0, file, value)
    extra = [key for key in table if key not in seen]
    if extra:
        raise source_error(
            "ambiguous-optimizer-ids",
            f"{len(extra)} states of {file} have numbers that no param group lists",
            notes=[f"first: {extra[0]}"],
            helps=["leave the optimizer out with `--states weights`"],
        )


def _masters(
    optimizer: Mapping[object, object], assigned: Sequence[GroupMembers], file: str
) -> Iterator[State]:
    """fp32 copies of half-precision weights: one list for each group that has any."""
    lists = optimizer.get("fp32_from_fp16_params")
    if not isinstance(lists, list):
        return
    if len(lists) != len(assigned):
        raise _unknown(file, f"{len(lists)} groups of masters, {len(assigned)} param groups")
    for masters, group in zip(lists, assigned, strict=True):
        halves = [p for p in group.members if p.ref.dtype.itemsize == 2]
        if not isinstance(masters, list) or len(masters) != len(halves):
            raise _unknown(file, f"{len(masters)} masters for {len(halves)} weights")
        for master, parameter in zip(masters, halves, strict=True):
            if not isinstance(master, TensorRef):
                raise _unknown(file, f"the master of `{parameter.name}` is no tensor")
            check_shape(parameter, master.shape, "master", -1, file)
            yield State(parameter, "master", master, 0, file)


def _group_steps(assigned: Sequence[GroupMembers], file: str) -> Iterator[State]:
    """Fused optimizers count steps by group."""
    for group in assigned:
        step = group.group.get("step")
        if isinstance(step, TensorRef) and step.shape == ():
            for parameter in group.members:
                yield State(parameter, "step", step, 0, step.file)
        elif isinstance(step, (int, float)) and not isinstance(step, bool):
            for parameter in group.members:
                yield State(parameter, "step", None, 0, file, step)


def _unknown(file: str, why: str) -> Exception:
    return source_error(
        "unknown-optimizer",
        f"the optimizer in {file} is of a kind that is not known",
        notes=[why],
        helps=["leave it out with `--states weights`"],
    )
