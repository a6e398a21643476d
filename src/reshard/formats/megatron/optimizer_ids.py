"""Which parameter each numbered state of a legacy optimizer belongs to.

The optimizer counts parameters group by group; a group takes its parameters in the order of
`named_parameters`. Which parameters a group has follows from what it says about itself.
Source: megatron/core/optimizer/__init__.py `_get_param_groups` (core 0.12 to 0.16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.modules import is_expert
from reshard.storage.torch_file import TensorRef


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of one rank: the model chunk that it is in, its name, and its weight.

    Args:  checked: elements that its master must round to; -1 for all.
    """

    chunk: int
    name: str
    ref: TensorRef = field(compare=False)
    checked: int = field(default=-1, compare=False)

    @property
    def numel(self) -> int:
        """Its elements on this rank."""
        return self.ref.numel


@dataclass(frozen=True, slots=True)
class GroupMembers:
    """A param group with its parameters, in its own order.

    Args:  ids: the numbers of their states; empty where the file does not number them.
    """

    group: Mapping[str, object]
    ids: tuple[int, ...]
    members: tuple[Parameter, ...]


def assign_groups(
    groups: Sequence[Mapping[str, object]],
    parameters: Sequence[Parameter],
    file: str,
) -> tuple[GroupMembers, ...]:
    """Give every group its parameters.

    Args:  groups: as stored, with `params` where the file numbers its states.
    Raises: ReshardError[ambiguous-optimizer-ids] when two groups claim the same parameters, or the
            counts differ.
    """
    left = list(parameters)
    claimed = [
        frozenset(p for p in parameters if _belongs(g, p.name, len(p.ref.shape), groups))
        for g in groups
    ]
    out = []
    for group, claim in zip(groups, claimed, strict=True):
        members = tuple(p for p in left if p in claim)
        raw = group.get("params")
        ids = tuple(i for i in raw if isinstance(i, int)) if isinstance(raw, list) else ()
        if raw is not None and len(ids) != len(members):
            raise _ambiguous(file, len(ids), [p.name for p in members], group)
        if raw is None and claim and claimed.count(claim) > 1:
            raise source_error(
                "ambiguous-optimizer-ids",
                f"{claimed.count(claim)} param groups of {file} may have the same "
                f"{len(claim)} parameters",
                notes=[f"first: `{next(p.name for p in parameters if p in claim)}`"],
                helps=["leave the optimizer out with `--states weights`"],
            )
        left = [p for p in left if p not in members]
        out.append(GroupMembers(group, ids, members))
    if left:
        raise source_error(
            "ambiguous-optimizer-ids",
            f"{len(left)} parameters belong to no param group of {file}",
            notes=[f"first: `{left[0].name}`"],
            helps=["leave the optimizer out with `--states weights`"],
        )
    return tuple(out)


def claims(
    groups: Sequence[Mapping[str, object]], named: Sequence[tuple[str, int]]
) -> list[list[str]]:
    """The parameters that each group has, by name; none for a group that another is like.

    Args:  named: names and numbers of dimensions.
    """
    found = [[name for name, dims in named if _belongs(g, name, dims, groups)] for g in groups]
    return [claim if found.count(claim) == 1 else [] for claim in found]


def _belongs(
    group: Mapping[str, object], name: str, dims: int, groups: Sequence[Mapping[str, object]]
) -> bool:
    expert_groups = any(g.get("is_expert_parallel") for g in groups)
    if expert_groups and bool(group.get("is_expert_parallel")) != is_expert(name):
        return False
    decoupled = any(g.get("is_decoupled_lr") for g in groups)
    if decoupled and bool(group.get("is_decoupled_lr")) != is_embedding(name):
        return False
    kinds = {_decays(g, groups) for g in groups}
    if len(kinds) == 1:
        return True  # a stage may have matrices alone; and a run may decay everything
    return _decays(group, groups) == is_decayed(name, dims)


def _decays(group: Mapping[str, object], groups: Sequence[Mapping[str, object]]) -> bool:
    """Whether a group's weights decay; before 2022 only its `weight_decay` says so."""
    if "wd_mult" not in group and any(g.get("weight_decay") for g in groups):
        return bool(group.get("weight_decay"))
    return group.get("wd_mult", 1.0) != 0.0


def is_decayed(name: str, dims: int) -> bool:
    """Whether a parameter's weights decay: a matrix's do, a bias's and a norm's do not."""
    return dims > 1 and not name.endswith(".bias")


def is_embedding(name: str) -> bool:
    """Whether a parameter is in the group that a learning rate of its own is for."""
    return name.endswith(("word_embeddings.weight", "output_layer.weight"))


def check_shape(
    parameter: Parameter, shape: tuple[int, ...], state: str, number: int, file: str
) -> None:
    """Refuse a state whose shape is not its parameter's.

    Raises: ReshardError[ambiguous-optimizer-ids].
    """
    if shape not in (parameter.ref.shape, ()):
        raise source_error(
            "ambiguous-optimizer-ids",
            f"state {number} of the optimizer does not fit `{parameter.name}`",
            notes=[
                f"`{state}` has shape {list(shape)}, the parameter {list(parameter.ref.shape)}",
                f"in {file}; the optimizer counts its parameters and does not name them",
            ],
            helps=["leave the optimizer out with `--states weights`"],
        )


def _ambiguous(
    file: str, count: int, names: Sequence[str], group: Mapping[str, object]
) -> ReshardError:
    return source_error(
        "ambiguous-optimizer-ids",
        f"a param group of {file} numbers {count} parameters where {len(names)} fit it",
        notes=[
            f"wd_mult={group.get('wd_mult')}, is_expert_parallel={group.get('is_expert_parallel')}",
            f"first that fits: `{names[0]}`" if names else "none fits",
        ],
        helps=["leave the optimizer out with `--states weights`"],
    )
