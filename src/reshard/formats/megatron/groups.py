"""Param groups: which parameters each has, in checkpoints that are read and that are written.

Which parameters a group has follows from its settings: by weight decay, embeddings with a learning
rate of their own, experts over several ranks.
Source: megatron/core/optimizer/__init__.py `_get_param_groups` (core 0.12 to 0.16; written as by
0.16.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import Diagnostic, target_error
from reshard.formats.megatron.modules import is_expert
from reshard.plan.agreement import agreed
from reshard.run.run import Group
from reshard.storage.kept import encode

RUNTIME = ("params", "step")
"""Entries of a group that are no hyper-parameters."""


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
        """Hyper-parameters and names of every group.

        Raises: ReshardError[mixed-runs] for a parameter that is in several.
        """
        group_of: dict[str, Mapping[str, object]] = {}
        for settings, names in self._found:
            for name in names:
                copies = ("one rank", group_of.setdefault(name, settings)), ("another", settings)
                agreed(copies, f"settings of the param group of `{name}`")
        return tuple(Group(values, names) for values, names in self._found)


Settings = dict[str, object]

_FUSED, _EXPERT = "bias_correction", "is_expert_parallel"
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
        return tuple(
            _optimizer({n: s for n, s in settings.items() if is_expert(n) == expert}, expert=expert)
            for expert in (False, True)
        )

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
            self.warnings.append(
                Diagnostic(
                    "megatron-groups",
                    "param groups become those that Megatron makes",
                    "warning",
                    notes=tuple(notes),
                    helps=("set the hyper-parameters in the run's arguments",),
                )
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
            notes=["the source does not say which parameters a group holds"],
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
        if settings.get("is_decoupled_lr"):
            overrides = {
                k: settings[k]
                for k in _OVERRIDES
                if k in settings and (k in overrides or "_lr" in k)
            }
        return (1, tuple((k, str(v)) for k, v in sorted(overrides.items())))

    return sorted(groups, key=key)


def _foreign(settings: Mapping[str, object], decayed: bool) -> Settings:
    """A group of Megatron's with the hyper-parameters of another framework's."""
    rest = {key: value for key, value in settings.items() if key not in (*RUNTIME, *_KEYS)}
    out: Settings = {
        _EXPERT: False,
        "default_config": True,
        **_MULTIPLIERS,
        "wd_mult": 1.0 if decayed else 0.0,
        **rest,
    }
    if not decayed and "weight_decay" in out:
        out["weight_decay"] = 0.0
    out.setdefault(_FUSED, True)
    return out
