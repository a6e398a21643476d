"""What of a source goes where in a distributed checkpoint, and what has no place there.

The hyper-parameters are complete as torch's loader asks for them: `load` wants every key that the
optimizer of the run has.  What the source does not tell is written as torch's AdamW has it by
default, with a warning.
Source: torch/optim/adamw.py, torch/optim/adam.py `Adam.__init__` (2.13).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import Diagnostic, warning
from reshard.formats.dcp.form import Form, Mark
from reshard.formats.dcp.names import Path
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.kept_keys import kept_keys
from reshard.plan.names import some
from reshard.run.run import Group, Run
from reshard.run.states import EXTRA, MASTER, MOMENTS, PARAM, WEIGHTS

_ADAMW: Mapping[str, object] = {
    "lr": 0.001,
    "betas": {"$tuple": [0.9, 0.999]},
    "eps": 1e-8,
    "weight_decay": 0.01,
    "amsgrad": False,
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}
"""Defaults of torch.optim.AdamW, as tagged JSON."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All groups, with the parameters that the target has in them.

    Args:  assumed: hyper-parameters that the source does not tell, and as what they are written.
    """

    groups: tuple[Group, ...] = ()
    assumed: Mapping[str, str] = field(default_factory=dict)

    def of(self, names: Collection[str]) -> Settings:
        """The groups with these parameters alone."""
        groups = (
            g.with_params(lambda members: [n for n in members if n in names]) for g in self.groups
        )
        return Settings(tuple(groups), self.assumed)

    def warning(self) -> tuple[Diagnostic, ...]:
        """What the source does not tell."""
        if not self.assumed:
            return ()
        listed = ", ".join(f"`{key}` as {value}" for key, value in self.assumed.items())
        return (
            warning(
                "dcp-defaults",
                "the source does not record all hyper-parameters of the optimizer",
                f"written: {listed}",
                "PyTorch's loader asks for every one that the optimizer of the run has, and "
                "takes it over",
                helps=("set them in the param groups again after loading",),
            ),
        )


@dataclass(slots=True)
class Contents:
    """The tensors and objects of a source, sorted.

    Args:  weights: by name, what FSDP calls a parameter: master weights where there are some.
           states: of the optimizer, by name and kind.
           extras: tensors of no parameter, with their paths.
           objects: as tagged JSON, with their paths.
           aliases: other names of weights, which are stored once more.
           iteration: optimizer steps done.
           dropped: by name and state of a tensor that has no place, why.
           folded: by name and state of one that is there as part of something else, as what.
    """

    arrangement: Arrangement
    weights: dict[str, Whole] = field(default_factory=dict)
    states: dict[str, dict[str, Whole]] = field(default_factory=dict)
    extras: list[tuple[Path, Whole]] = field(default_factory=list)
    objects: list[tuple[Path, object]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    iteration: int | None = None
    warned: list[Diagnostic] = field(default_factory=list)
    dropped: dict[tuple[str, str], str] = field(default_factory=dict)
    folded: dict[tuple[str, str], str] = field(default_factory=dict)

    def kinds_of(self, name: str) -> tuple[str, ...]:
        """The kinds of weights that a source has under a name."""
        wholes = self.arrangement.wholes
        return tuple(w.state for w in wholes if w.name == name and w.state in WEIGHTS)

    def mark(self, form: Form) -> Mark:
        """What `.metadata` notes of the weights."""
        masters = [name for name, whole in self.weights.items() if whole.state == MASTER]
        return Mark(
            True,
            tuple(map(form.weight_name, masters)),
            {
                form.weight_name(name): form.weight_name(stored)
                for name, stored in self.aliases.items()
                if stored in self.weights
            },
            self.arrangement.catalog.names_of,
        )


def contents_of(arrangement: Arrangement, group_keys: Mapping[str, str] | None = None) -> Contents:
    """Sort a source.

    Args:  group_keys: hyper-parameters that the target wants besides, and which they are where the
           source does not tell them.
    """
    catalog = arrangement.catalog
    kept = catalog.training.of("dcp")
    out = Contents(arrangement, iteration=catalog.training.iteration)
    out.aliases = dict(catalog.aliases or {})
    kinds: dict[str, dict[str, Whole]] = {}
    unlike = kept.get("unlike")
    owners = unlike if isinstance(unlike, dict) else {}
    for whole in arrangement.wholes:
        if whole.state != EXTRA:
            kinds.setdefault(whole.name, {})[whole.state] = whole
    for whole in (whole for whole in arrangement.wholes if whole.state == EXTRA):
        owner = owners.get(whole.name)
        if isinstance(owner, list) and owner[0] not in kinds:
            why = "it has not the shape of its parameter, which has another name here"
            out.dropped[whole.name, EXTRA] = why
        elif kept:
            out.extras.append((_path(kept, whole.name), whole))
        else:
            why = "it belongs to no parameter, and only the program that wrote it reads it"
            out.dropped[whole.name, EXTRA] = why
    _sort_weights(out, kinds)
    _sort_states(out, kinds)
    trained = [name for name in kinds if name in out.states]
    if trained:
        others = out.weights if kept else ()  # SGD without momentum has no states
        out.settings = _settings(catalog.training, trained, others, out.states, group_keys or {})
    objects, schedule = kept.get("objects"), None if kept else catalog.training.scheduler
    if isinstance(objects, dict):
        out.objects += [(_path(kept, key), value) for key, value in objects.items()]
    if isinstance(schedule, dict) and not any(str(key).startswith("$") for key in schedule):
        out.objects += [(("lr_scheduler", str(key)), value) for key, value in schedule.items()]
    out.warned += _left_behind(catalog.training)
    return out


def _sort_weights(out: Contents, kinds: Mapping[str, Mapping[str, Whole]]) -> None:
    first: dict[object, str] = {}
    for name, own_kinds in kinds.items():
        chosen = own_kinds.get(MASTER) or own_kinds.get(PARAM)
        if chosen is not None:
            out.weights[name] = chosen
            if chosen.segments and first.setdefault(chosen.segments, name) != name:
                out.aliases[name] = first[chosen.segments]
        if {MASTER, PARAM} <= own_kinds.keys():
            out.folded[name, PARAM] = "the master weights, from which it is rounded"


def _sort_states(out: Contents, kinds: Mapping[str, Mapping[str, Whole]]) -> None:
    """States of the optimizer; of tied weights, which it trains once, under the first name."""
    first: dict[tuple[object, str], str] = {}
    for name, own_kinds in kinds.items():
        for state, whole in own_kinds.items():
            if state in WEIGHTS:
                continue
            known = first.setdefault((whole.segments, state), name)
            if known != name and whole.segments:
                out.folded[name, state] = f"that of `{known}`, which it is tied to"
            else:
                out.states.setdefault(name, {})[state] = whole


def _settings(
    training: Run,
    trained: Sequence[str],
    others: Collection[str],
    states: Mapping[str, Collection[str]],
    extra: Mapping[str, str],
) -> Settings:
    """The param groups of a source for the parameters that have states.

    Args:  trained: names in the order of the model.  others: names without states that stay in
           their groups.  states: kinds of state by name.
           extra: further keys, and which they are where they are not told.
    """
    known = {*trained, *others}
    groups = [
        ([name for name in group.members if name in known], group.settings)
        for group in training.param_groups
    ]
    owned = {name for group in training.param_groups for name in group.members}
    rest = [name for name in trained if name not in owned]
    if rest and len(groups) == 1:
        groups[0][0].extend(rest)
    elif rest:
        groups.append((rest, {}))
    assumed: dict[str, str] = {}
    for members, settings in groups:
        kinds = {state for name in members or trained for state in states.get(name, ())}
        for key, value in _ADAMW.items() if {*MOMENTS} <= kinds else ():
            if key not in settings:
                settings[key] = value
                assumed[key] = str(tuple(value["$tuple"]) if isinstance(value, dict) else value)
        for key, other in extra.items():
            if key not in settings and other in settings:
                settings[key] = settings[other]
                assumed[key] = f"`{other}`"
    return Settings(tuple(Group(settings, params) for params, settings in groups), assumed)


def _left_behind(training: Run) -> list[Diagnostic]:
    """Warnings for what the source knows of its training that has no place here."""
    framework = training.framework
    if training.of("dcp"):
        ranks = framework.get("rank_objects")
        if not isinstance(ranks, dict) or not ranks:
            return []
        differing = dict.fromkeys(f"`{key}`" for entries in ranks.values() for key in entries)
        return [
            warning(
                "dcp-rank-objects",
                "objects that differ from rank to rank are written as the first rank has them",
                f"they are {some(differing, 12)}",
                helps=("keep the source, or convert to `universal`, which keeps all of them",),
            )
        ]
    facts = ("name", "version", "layout", "kept")
    rest = {key: value for key, value in framework.items() if key not in facts}
    rest |= {k: v for k, v in training.state.items() if k != "lr_scheduler"}
    keys = [key for key, value in rest.items() if value not in (None, "", [], {}, (), False)]
    described = "kept" in framework or "layout" in framework
    keys += [item.key for item in kept_keys(training)] if described else []
    if not keys:
        return []
    name = "the source" if described else framework.get("name") or "the source"
    return [
        warning(
            "dcp-left",
            f"what only {name} resumes with is not written",
            f"it is {some((f'`{key}`' for key in keys), 12)}",
            helps=("keep the source, or convert to `universal`, which keeps it",),
        )
    ]


def _path(framework: Mapping[str, object], key: str) -> Path:
    paths = framework.get("paths")
    path = paths.get(key) if isinstance(paths, dict) else None
    return tuple(path) if isinstance(path, list) else (key,)
