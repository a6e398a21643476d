"""Param groups: which parameters each has, in checkpoints that are read and that are written.

Which parameters a group has follows from its settings: by weight decay, embeddings with a learning
rate of their own, experts over several ranks.
Source: megatron/core/optimizer/__init__.py `_get_param_groups` (core 0.12 to 0.16; written as by
0.16.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.dtypes import DType
from reshard.errors import Diagnostic, target_error
from reshard.formats.megatron.modules import is_expert
from reshard.formats.megatron.names import stacked_axes
from reshard.plan.agreement import agreed
from reshard.plan.catalog import Fragment, Left, LocalTensor
from reshard.run.run import Group
from reshard.run.states import EXP_AVG, EXTRA, PARAM, STEP
from reshard.storage.kept import encode
from reshard.storage.numbers import number_bytes
from reshard.storage.torch_file import TensorRef, read_small

RUNTIME = ("params", "step")
"""Entries of a group that are no hyper-parameters."""
_EXPERT, _DECOUPLED = "is_expert_parallel", "is_decoupled_lr"
_EMBEDDINGS = ("word_embeddings.weight", "output_layer.weight")
"""What a learning rate of its own is for."""


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
    kinds = {_EXPERT: is_expert(name), _DECOUPLED: name.endswith(_EMBEDDINGS)}
    for key, is_of_kind in kinds.items():
        if any(g.get(key) for g in groups) and bool(group.get(key)) != is_of_kind:
            return False
    if len({_decays(g, groups) for g in groups}) == 1:
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
        self._groups: list[tuple[dict[str, object], dict[str, None]]] = []

    def add(self, group: Mapping[str, object], members: Sequence[str]) -> None:
        """One group with the global names of its parameters."""
        values = {str(key): encode(value) for key, value in group.items() if key not in RUNTIME}
        alike = [names for settings, names in self._groups if settings == values]
        if not alike:
            alike = [{}]
            self._groups.append((values, alike[0]))
        alike[0].update(dict.fromkeys(members))

    def all(self) -> tuple[Group, ...]:
        """Hyper-parameters and names of every group.

        Raises: ReshardError[mixed-runs] for a parameter that is in several.
        """
        group_of: dict[str, Mapping[str, object]] = {}
        for settings, names in self._groups:
            for name in names:
                copies = ("one rank", group_of.setdefault(name, settings)), ("another", settings)
                agreed(copies, f"settings of the param group of `{name}`")
        return tuple(Group(values, names) for values, names in self._groups)


Settings = dict[str, object]

_FUSED = "bias_correction"
_KEYS = ("wd_mult", "lr_mult", "is_decoupled_lr")
_OVERRIDES = ("is_decoupled_lr", "lr_mult", "max_lr", "min_lr", "wd_mult")
_MULTIPLIERS = {"wd_mult": 1.0, "lr_mult": 1.0, "is_decoupled_lr": False}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One of the chained optimizers.

    Args:  groups: their settings.  members: by name of a parameter, the index of its group.
    """

    groups: tuple[Settings, ...]
    members: Mapping[str, int]


@dataclass(slots=True)
class GroupBuilder:
    """Makes the groups of a target.

    Args:  source: the source's groups, none of them empty of settings.
           chained: experts are on several ranks, so that they have an optimizer of their own.
    """

    source: Sequence[Group]
    chained: bool
    warnings: list[Diagnostic] = field(default_factory=list)

    def build(self, parameters: Mapping[str, int]) -> tuple[Optimizer, ...]:
        """The optimizers with their groups; every group that holds some parameter of some rank.

        Args:  parameters: of the whole model, with the dimensions of each on one rank.
        Raises: ReshardError[megatron-groups].
        """
        is_own = all("wd_mult" in group for group in self.source)
        settings = self._megatron(parameters) if is_own else self._foreign(parameters)
        if not self.chained or not any(map(is_expert, parameters)):
            return (_optimizer(settings, expert=False),)
        kinds: tuple[dict[str, Settings], dict[str, Settings]] = {}, {}
        for name, item in settings.items():
            kinds[is_expert(name)][name] = item
        return tuple(_optimizer(kind, expert=bool(n)) for n, kind in enumerate(kinds))

    def _megatron(self, parameters: Mapping[str, int]) -> dict[str, Settings]:
        """The settings of every parameter: those of the group that it was in."""
        settings = {name: group.settings for group in self.source for name in group.params or ()}
        rest = [group for group in self.source if group.params is None]
        return {
            name: settings[name] if name in settings else _fitting(name, dims, rest)
            for name, dims in parameters.items()
        }

    def _foreign(self, parameters: Mapping[str, int]) -> dict[str, Settings]:
        """Megatron's two groups, with the hyper-parameters of the groups of another framework."""
        holder = {name: group for group in self.source for name in group.params or ()}
        kinds: dict[bool, list[Settings]] = {True: [], False: []}
        decayed_otherwise: list[str] = []
        for name, dims in parameters.items():
            decayed = is_decayed(name, dims)
            settings = holder.get(name, self.source[0]).settings
            if settings not in kinds[decayed]:
                kinds[decayed].append(settings)
            decay = settings.get("weight_decay")
            if decay is not None and bool(decay) != decayed:
                decayed_otherwise.append(name)
        self._warn(kinds, decayed_otherwise)
        groups = {decayed: _foreign(kind[0], decayed) for decayed, kind in kinds.items() if kind}
        return {name: groups[is_decayed(name, dims)] for name, dims in parameters.items()}

    def _warn(self, kinds: Mapping[bool, Sequence[Settings]], decayed: Sequence[str]) -> None:
        notes = []
        for is_on, kind in kinds.items():
            keys = dict.fromkeys(key for settings in kind for key in settings)
            differing = [k for k in keys if any(s.get(k) != kind[0].get(k) for s in kind)]
            if differing:
                names = ", ".join(f"`{key}`" for key in differing)
                what = "that decay" if is_on else "that do not decay"
                notes.append(f"those {what} had different {names}: the first one's is kept")
        if decayed:
            notes.append(
                f"Megatron lets weights decay and biases and norms not, unlike the source for "
                f"`{decayed[0]}`" + (f" and {len(decayed) - 1} more" if len(decayed) > 1 else "")
            )
        if notes:
            headline = "param groups become those that Megatron makes"
            helps = ("set the hyper-parameters in the run's arguments",)
            self.warnings.append(
                Diagnostic("megatron-groups", headline, "warning", notes=tuple(notes), helps=helps)
            )


def _fitting(name: str, dims: int, groups: Sequence[Group]) -> Settings:
    """The settings of the one group that a parameter can be in, in whichever optimizer."""
    kinds: list[Settings] = []
    for group in groups:
        settings = {key: value for key, value in group.settings.items() if key != _EXPERT}
        if settings not in kinds:
            kinds.append(settings)
    choices = [settings for settings in kinds if belongs(settings, name, dims, kinds)]
    if len(choices) != 1:
        raise target_error(
            "megatron-groups",
            f"`{name}` fits {len(choices)} of the {len(groups)} param groups of the source",
            notes=["the source does not state which parameters a group has"],
            helps=["leave the optimizer out with `--states weights`"],
        )
    return choices[0]


def carried_groups(
    source: Sequence[Group], *, chained: bool
) -> tuple[tuple[Settings, ...], ...] | None:
    """Megatron's own groups, one tuple for each optimizer, where none says what it holds.

    None where it must be known what they hold: experts go from one optimizer to another.
    """
    if any(group.params is not None or "wd_mult" not in group for group in source):
        return None
    if chained != any(group.get(_EXPERT) for group in source):
        return None
    return tuple(
        tuple(_plain(g) for g in source if bool(g.get(_EXPERT)) == expert)
        for expert in ([False, True] if chained else [False])
    )


def is_fused(source: Iterable[Group]) -> bool:
    """Whether the optimizer counts steps by group, as fused ones do, not by parameter."""
    return all(
        _FUSED in group or not {"foreach", "amsgrad"} & group.settings.keys() for group in source
    )


def _optimizer(settings_of: Mapping[str, Settings], *, expert: bool) -> Optimizer:
    """The groups of parameters with the same settings."""
    settings = {name: {**_plain(item), _EXPERT: expert} for name, item in settings_of.items()}
    groups: list[Settings] = []
    for item in settings.values():
        if item not in groups:
            groups.append(item)
    groups = _sorted(groups)
    return Optimizer(tuple(groups), {name: groups.index(item) for name, item in settings.items()})


def _plain(settings: Mapping[str, object]) -> Settings:
    """Settings without what a run says anew; `is_expert_parallel` first, as Megatron has it."""
    return {_EXPERT: False, **{k: v for k, v in settings.items() if k not in RUNTIME}}


def _sorted(groups: Sequence[Settings]) -> list[Settings]:
    """The group without overrides first, the others by what they override."""

    def key(settings: Settings) -> tuple[object, ...]:
        overrides = {
            k: settings[k] for k in _KEYS if settings.get(k, _MULTIPLIERS[k]) != _MULTIPLIERS[k]
        }
        if not overrides:
            return (0,)
        if settings.get(_DECOUPLED):
            keys = (k for k in _OVERRIDES if k in overrides or "_lr" in k)
            overrides = {k: settings[k] for k in keys if k in settings}
        return (1, tuple((k, str(v)) for k, v in sorted(overrides.items())))

    return sorted(groups, key=key)


def _foreign(settings: Mapping[str, object], decayed: bool) -> Settings:
    """A group of Megatron's with the hyper-parameters of another framework's."""
    multipliers = {**_MULTIPLIERS, "wd_mult": 1.0 if decayed else 0.0}
    out: Settings = {_EXPERT: False, "default_config": True, **multipliers}
    out.update((k, v) for k, v in settings.items() if k not in (*RUNTIME, *_KEYS))
    if not decayed and "weight_decay" in out:
        out["weight_decay"] = 0.0
    return {**out, _FUSED: out.get(_FUSED, True)}


_OBJECT = re.compile(r"(?:chained_(\d+)\.)?optimizer\.distributed\.dp_group_idx_\d+\.optimizer/")


Step = tuple[DType, bytes]
_Optimizer = tuple[Sequence[Mapping[str, object]], Step | None]
"""The groups of one optimizer, and the number of steps that it states once for all."""


def dist_groups(
    common: object, objects: Mapping[str, object], tensors: Sequence[LocalTensor], file: str
) -> tuple[Groups, list[LocalTensor]]:
    """The param groups with the names of their parameters, and every parameter's step.

    Args:  common: the optimizer in the common state, which is in `file`.
           objects: pickled ones by key; some optimizers keep their groups there, once for each
                    rank.
    """
    optimizers = [*_optimizers(common), *_of_objects(objects)]
    names = {t.name for t in tensors if t.state == EXP_AVG}
    names = names or {t.name for t in tensors if t.state not in (PARAM, EXTRA)}
    parameters = [
        (t.name, len(t.shape) - stacked_axes(t.name))
        for t in tensors
        if t.state == PARAM and t.name in names
    ]
    out = Groups()
    steps: dict[str, set[Step]] = {}
    for (groups, common_step), share in zip(
        optimizers, _shares(optimizers, parameters), strict=True
    ):
        for group, claim in zip(groups, claims(groups, share), strict=True):
            out.add(group, claim)
            step = _step(group.get("step")) or common_step
            if step is not None:
                for name in claim:
                    steps.setdefault(name, set()).add(step)
    with_steps = {t.name for t in tensors if t.state == STEP}
    numbers = []
    for name, values in steps.items():
        if name not in with_steps and len(values) == 1:
            ((dtype, data),) = values
            fragment = Fragment(0, 1, file, 0, None, data)
            numbers.append(LocalTensor(name, STEP, (), (), dtype, (fragment,)))
    return out, numbers


def _shares(
    optimizers: Sequence[_Optimizer], names: Sequence[tuple[str, int]]
) -> list[Sequence[tuple[str, int]]]:
    """The parameters of every optimizer: one has all; of several, those with expert groups have
    the experts.
    """
    experts = [any(g.get("is_expert_parallel") for g in groups) for groups, _ in optimizers]
    if not any(experts):
        return [names for _ in optimizers]
    return [[item for item in names if is_expert(item[0]) == expert] for expert in experts]


def _optimizers(common: object) -> Iterator[_Optimizer]:
    for item in optimizers_in(common):
        inner = item.get("optimizer", item) if isinstance(item, dict) else None
        groups = inner.get("param_groups") if isinstance(inner, dict) else None
        if isinstance(item, dict) and isinstance(inner, dict) and isinstance(groups, list):
            states = (tree.get("state") for tree in (item, inner))
            steps = (_step(state.get("common_step")) for state in states if isinstance(state, dict))
            settings = [group for group in groups if isinstance(group, dict)]
            yield settings, next((step for step in steps if step is not None), None)


def unread_states(common: object, file: str, key: str = "optimizer") -> Iterator[Left]:
    """Entries of `state` in the common state's optimizer, where nothing but a step is read."""
    for name, item in common.items() if isinstance(common, dict) else ():
        if name == "state" and isinstance(item, dict):
            for entry in item:
                if entry != "common_step":
                    yield Left(file, f"{key}.state.{entry}", "it is no number of steps")
        elif name == "optimizer" or isinstance(name, int):
            yield from unread_states(item, file, f"{key}.{name}")


def _of_objects(objects: Mapping[str, object]) -> Iterator[_Optimizer]:
    """Groups that every rank keeps for itself."""
    for key, value in objects.items():
        if _OBJECT.match(key):
            for item in value if isinstance(value, list) else [value]:
                yield from _optimizers(item)


def _step(value: object) -> Step | None:
    if isinstance(value, TensorRef) and value.shape == ():
        return value.dtype, read_small(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_bytes(value)
    return None
