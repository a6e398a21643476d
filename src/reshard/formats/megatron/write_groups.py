"""Param groups as Megatron makes them: by weight decay, experts over several ranks by themselves.

Source: megatron/core/optimizer/__init__.py `_get_param_groups`, `get_megatron_optimizer`
(core 0.16.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import Diagnostic, target_error
from reshard.formats.megatron.modules import is_expert
from reshard.formats.megatron.optimizer_ids import is_decayed, is_embedding

Settings = dict[str, object]

_FUSED = "bias_correction"
_RUNTIME = ("params", "step")
_KEYS = ("wd_mult", "lr_mult", "is_decoupled_lr")
_OVERRIDES = ("is_decoupled_lr", "lr_mult", "max_lr", "min_lr", "wd_mult")
_MULTIPLIERS = {"wd_mult": 1.0, "lr_mult": 1.0, "is_decoupled_lr": False}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the whole model.

    Args:  name: global.  dims: of the tensor on one rank, without an axis for layers.
    """

    name: str
    dims: int


@dataclass(frozen=True, slots=True)
class SourceGroup:
    """A param group of the source.

    Args:  params: names; None where the source does not list them.  settings: hyper-parameters.
    """

    params: tuple[str, ...] | None
    settings: Mapping[str, object]


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

    source: Sequence[SourceGroup]
    chained: bool
    warnings: list[Diagnostic] = field(default_factory=list)

    @property
    def is_megatron(self) -> bool:
        """Whether the source's groups are Megatron's own."""
        return all("wd_mult" in group.settings for group in self.source)

    def build(self, parameters: Sequence[Parameter]) -> tuple[Optimizer, ...]:
        """The optimizers with their groups; every group that holds some parameter of some rank.

        Raises: ReshardError[megatron-groups].
        """
        found = self._megatron(parameters) if self.is_megatron else self._foreign(parameters)
        kinds = [False, True] if self.chained and any(is_expert(p.name) for p in parameters) else []
        if not kinds:
            return (_optimizer(found, parameters, expert=False),)
        return tuple(
            _optimizer(found, [p for p in parameters if is_expert(p.name) == expert], expert=expert)
            for expert in kinds
        )

    def _megatron(self, parameters: Sequence[Parameter]) -> dict[str, Settings]:
        """The settings of every parameter: those of the group that it was in."""
        listed = {
            name: dict(group.settings) for group in self.source for name in group.params or ()
        }
        rest = [group for group in self.source if group.params is None]
        return {
            p.name: listed[p.name] if p.name in listed else self._by_rule(p, rest)
            for p in parameters
        }

    def _by_rule(self, parameter: Parameter, groups: Sequence[SourceGroup]) -> Settings:
        """The settings of the one group that a parameter can be in."""
        fitting: list[Settings] = []
        decoupled = any(group.settings.get("is_decoupled_lr") for group in groups)
        for group in groups:
            settings = group.settings
            if (settings.get("wd_mult") != 0.0) != is_decayed(parameter.name, parameter.dims):
                continue
            apart = bool(settings.get("is_decoupled_lr"))
            if decoupled and apart != is_embedding(parameter.name):
                continue
            known = {key: value for key, value in settings.items() if key != "is_expert_parallel"}
            if known not in [
                {k: v for k, v in f.items() if k != "is_expert_parallel"} for f in fitting
            ]:
                fitting.append(dict(settings))
        if len(fitting) != 1:
            raise target_error(
                "megatron-groups",
                f"`{parameter.name}` fits {len(fitting)} of the {len(groups)} param groups "
                "of the source",
                notes=["the source does not say which parameters a group holds"],
                helps=["leave the optimizer out with `--states weights`"],
            )
        return fitting[0]

    def _foreign(self, parameters: Sequence[Parameter]) -> dict[str, Settings]:
        """Megatron's two groups, with the hyper-parameters of the groups of another framework."""
        holder = {name: group for group in self.source for name in group.params or ()}
        default = self.source[0]
        kinds: dict[bool, list[Mapping[str, object]]] = {True: [], False: []}
        decayed_otherwise: list[str] = []
        for p in parameters:
            decayed = is_decayed(p.name, p.dims)
            settings = holder.get(p.name, default).settings
            if settings not in kinds[decayed]:
                kinds[decayed].append(settings)
            if (
                bool(settings.get("weight_decay")) != decayed
                and settings.get("weight_decay") is not None
            ):
                decayed_otherwise.append(p.name)
        self._warn(kinds, decayed_otherwise)
        made = {decayed: _foreign(found[0], decayed) for decayed, found in kinds.items() if found}
        return {p.name: made[is_decayed(p.name, p.dims)] for p in parameters}

    def _warn(
        self, kinds: Mapping[bool, Sequence[Mapping[str, object]]], decayed: Sequence[str]
    ) -> None:
        notes = []
        for is_on, found in kinds.items():
            keys = dict.fromkeys(key for settings in found for key in settings)
            differing = [k for k in keys if any(s.get(k) != found[0].get(k) for s in found)]
            if differing:
                listed = ", ".join(f"`{key}`" for key in differing)
                what = "that decay" if is_on else "that do not decay"
                notes.append(f"those {what} had different {listed}: the first one's is kept")
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


def carried_groups(
    source: Sequence[SourceGroup], *, chained: bool
) -> tuple[tuple[Settings, ...], ...] | None:
    """Megatron's own groups, one tuple for each optimizer, where none says what it holds.

    None where it must be known what they hold: experts go from one optimizer to another.
    """
    if any(g.params is not None or "wd_mult" not in g.settings for g in source):
        return None
    kinds = [bool(group.settings.get("is_expert_parallel")) for group in source]
    if chained != any(kinds):
        return None
    return tuple(
        tuple(_plain(g.settings) for g, kind in zip(source, kinds, strict=True) if kind == expert)
        for expert in ([False, True] if chained else [False])
    )


def is_fused(source: Iterable[SourceGroup]) -> bool:
    """Whether the optimizer counts steps by group, as fused ones do, not by parameter."""
    return all(
        _FUSED in group.settings or not {"foreach", "amsgrad"} & group.settings.keys()
        for group in source
    )


def _optimizer(
    found: Mapping[str, Settings], parameters: Sequence[Parameter], *, expert: bool
) -> Optimizer:
    groups: list[Settings] = []
    for p in parameters:
        settings = {**_plain(found[p.name]), "is_expert_parallel": expert}
        if settings not in groups:
            groups.append(settings)
    groups = _sorted(groups)
    members = {
        p.name: groups.index({**_plain(found[p.name]), "is_expert_parallel": expert})
        for p in parameters
    }
    return Optimizer(tuple(groups), members)


def _plain(settings: Mapping[str, object]) -> Settings:
    """Settings without what a run says anew; `is_expert_parallel` first, as Megatron has it."""
    own = {key: value for key, value in settings.items() if key not in _RUNTIME}
    return {"is_expert_parallel": False, **own}


def _sorted(groups: Sequence[Settings]) -> list[Settings]:
    """The group without overrides first, the others by what they override."""

    def key(settings: Settings) -> tuple[object, ...]:
        own = {k: settings[k] for k in _KEYS if settings.get(k, _MULTIPLIERS[k]) != _MULTIPLIERS[k]}
        if not own:
            return (0,)
        if settings.get("is_decoupled_lr"):
            own = {k: settings[k] for k in _OVERRIDES if k in settings and (k in own or "_lr" in k)}
        return (1, tuple((k, str(v)) for k, v in sorted(own.items())))

    return sorted(groups, key=key)


def _foreign(settings: Mapping[str, object], decayed: bool) -> Settings:
    """A group of Megatron's with the hyper-parameters of another framework's."""
    own = {key: value for key, value in settings.items() if key not in (*_RUNTIME, *_KEYS)}
    out: Settings = {
        "is_expert_parallel": False,
        "default_config": True,
        **_MULTIPLIERS,
        "wd_mult": 1.0 if decayed else 0.0,
        **own,
    }
    if not decayed and "weight_decay" in out:
        out["weight_decay"] = 0.0
    out.setdefault(_FUSED, True)
    return out
