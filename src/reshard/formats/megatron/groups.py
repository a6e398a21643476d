"""Param groups: which parameters each has, and which of them its numbered states belong to.

The optimizer counts parameters group by group; a group takes its parameters in the order of
`named_parameters`. Which parameters a group has follows from what it says about itself.
Source: megatron/core/optimizer/__init__.py `_get_param_groups` (core 0.12 to 0.16), and
`get_megatron_optimizer` (core 0.6 to 0.16): one optimizer for the dense parameters, one for experts
over several ranks; with overlapping gathers of parameters, one more for the first model chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.modules import is_expert
from reshard.run.run import Group
from reshard.storage.kept import encode
from reshard.storage.torch_file import TensorRef

RUNTIME = ("params", "step")
"""Entries of a group that are no hyper-parameters."""

_HELPS = ("leave the optimizer out with `--states weights`",)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of one rank: the model chunk that it is in, its name, and its weight.

    Args:  checked: elements that its master must round to.
    """

    chunk: int
    name: str
    ref: TensorRef = field(compare=False)
    checked: int = field(default=0, compare=False)

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


@dataclass(frozen=True, slots=True)
class Part:
    """One optimizer as it is stored.

    Args:  groups: its param groups.  states: by number.  masters: by group, None without any.
    """

    groups: tuple[Mapping[str, object], ...]
    states: Mapping[object, Mapping[object, object]]
    masters: tuple[tuple[object, ...], ...] | None


def optimizers_in(tree: object) -> list[object]:
    """Each of several chained optimizers: a list, or a dict by number; or the one that there is."""
    if isinstance(tree, Mapping):
        return [tree[k] for k in sorted(k for k in tree if isinstance(k, int))] or [tree]
    return tree if isinstance(tree, list) else [tree]


def belongs(
    group: Mapping[str, object], name: str, dims: int, groups: Sequence[Mapping[str, object]]
) -> bool:
    """Whether a group may have a parameter.

    Args:  dims: of the parameter, on one rank.  groups: all of the optimizer.
    """
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


def claims(
    groups: Sequence[Mapping[str, object]], named: Sequence[tuple[str, int]]
) -> list[list[str]]:
    """The parameters that each group has, by name; none for a group that another is like.

    Args:  named: names and numbers of dimensions.
    """
    members = [[name for name, dims in named if belongs(g, name, dims, groups)] for g in groups]
    return [claim if members.count(claim) == 1 else [] for claim in members]


class Groups:
    """Param groups of all ranks, joined where their hyper-parameters are the same."""

    def __init__(self) -> None:
        self._found: list[tuple[dict[str, object], dict[str, None]]] = []

    def add(self, group: Mapping[str, object], members: Sequence[str]) -> None:
        """One group with the global names of its parameters."""
        values = {str(key): encode(value) for key, value in group.items() if key not in RUNTIME}
        params = next((names for settings, names in self._found if settings == values), None)
        if params is None:
            params = {}
            self._found.append((values, params))
        params.update(dict.fromkeys(members))

    def all(self) -> tuple[Group, ...]:
        """Hyper-parameters and names of every group."""
        return tuple(Group(values, names) for values, names in self._found)


def share_parameters(
    parts: Sequence[Part], parameters: Sequence[Parameter], file: str
) -> list[tuple[GroupMembers, ...]]:
    """The groups of every optimizer with their parameters.

    Raises: ReshardError[ambiguous-optimizer-ids] when the parameters can be shared in no way, or in
            several.
    """
    solutions: list[list[tuple[GroupMembers, ...]]] = []
    first: ReshardError | None = None
    for shares in _ways(len(parts), parameters):
        try:
            solutions.append(
                [_assigned(part, share, file) for part, share in zip(parts, shares, strict=True)]
            )
        except ReshardError as error:
            first = first or error
    if len(solutions) == 1:
        return solutions[0]
    if first is not None and not solutions:
        raise first
    raise _ambiguous(
        f"{file} has {len(parts)} optimizers, and which parameters each has is not known",
        f"{len(solutions)} ways of sharing {len(parameters)} parameters fit",
        "optimizers count their parameters and do not name them",
    )


def _ways(count: int, parameters: Sequence[Parameter]) -> Iterator[tuple[Sequence[Parameter], ...]]:
    """Ways in which Megatron shares parameters; none twice."""
    dense = [p for p in parameters if not is_expert(p.name)]
    experts = [p for p in parameters if is_expert(p.name)]
    head, rest = [p for p in dense if p.chunk == 0], [p for p in dense if p.chunk > 0]
    if count == 1:
        yield (parameters,)
    elif count == 2 and experts:
        yield dense, experts
    elif count == 2 and head and rest:
        yield head, rest
    elif count == 3 and head and rest and experts:
        yield head, rest, experts


def _assigned(part: Part, parameters: Sequence[Parameter], file: str) -> tuple[GroupMembers, ...]:
    """The groups of one optimizer with their parameters, whose shapes the states must have."""
    groups = part.groups
    claims_of = [
        frozenset(p for p in parameters if belongs(g, p.name, len(p.ref.shape), groups))
        for g in groups
    ]
    rest = list(parameters)
    out = []
    for group, claim in zip(groups, claims_of, strict=True):
        members = tuple(p for p in rest if p in claim)
        raw = group.get("params")
        ids = tuple(i for i in raw if isinstance(i, int)) if isinstance(raw, list) else ()
        if raw is not None and len(ids) != len(members):
            raise _ambiguous(
                f"a param group of {file} numbers {len(ids)} parameters where {len(members)} "
                "fit it",
                f"wd_mult={group.get('wd_mult')}, "
                f"is_expert_parallel={group.get('is_expert_parallel')}",
                f"first that fits: `{members[0].name}`" if members else "none fits",
            )
        if raw is None and claim and claims_of.count(claim) > 1:
            raise _ambiguous(
                f"{claims_of.count(claim)} param groups of {file} may have the same "
                f"{len(claim)} parameters",
                f"first: `{next(p.name for p in parameters if p in claim)}`",
            )
        rest = [p for p in rest if p not in members]
        out.append(GroupMembers(group, ids, members))
    if rest:
        raise _ambiguous(
            f"{len(rest)} parameters belong to no param group of {file}",
            f"first: `{rest[0].name}`",
        )
    for item in out:
        for number, parameter in zip(item.ids, item.members, strict=bool(item.ids)):
            for name, value in part.states.get(number, {}).items():
                if isinstance(value, TensorRef):
                    check_shape(parameter, value.shape, str(name), number, file)
    return tuple(out)


def check_shape(
    parameter: Parameter, shape: tuple[int, ...], state: str, number: int, file: str
) -> None:
    """Refuse a state whose shape is not its parameter's.

    Raises: ReshardError[ambiguous-optimizer-ids].
    """
    if shape not in (parameter.ref.shape, ()):
        raise _ambiguous(
            f"state {number} of the optimizer does not fit `{parameter.name}`",
            f"`{state}` has shape {list(shape)}, the parameter {list(parameter.ref.shape)}",
            f"in {file}; the optimizer counts its parameters and does not name them",
        )


def _ambiguous(headline: str, *notes: str) -> ReshardError:
    return source_error("ambiguous-optimizer-ids", headline, notes=notes, helps=_HELPS)
