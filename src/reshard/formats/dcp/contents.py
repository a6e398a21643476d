"""What of a source goes where in a distributed checkpoint, and what has no place there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from reshard.errors import Diagnostic
from reshard.formats.dcp.names import Path
from reshard.formats.dcp.settings import Settings, settings_of
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.kept_keys import kept_keys
from reshard.run.run import Run
from reshard.run.states import EXTRA, MASTER, PARAM, WEIGHTS


@dataclass(slots=True)
class Contents:
    """The tensors and objects of a source, sorted.

    Args:  weights: by name, what FSDP calls a parameter: master weights where there are some.
           states: of the optimizer, by name and kind.
           extras: tensors of no parameter, with their paths.
           objects: as tagged JSON, with their paths.
           aliases: other names of weights, which are stored once more.
           iteration: optimizer steps done.
    """

    arrangement: Arrangement
    weights: dict[str, Whole] = field(default_factory=dict)
    states: dict[str, dict[str, Whole]] = field(default_factory=dict)
    extras: list[tuple[Path, Whole]] = field(default_factory=list)
    objects: list[tuple[Path, object]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=lambda: Settings((), {}))
    iteration: int | None = None
    warned: list[Diagnostic] = field(default_factory=list)
    _dropped: dict[tuple[str, str], str] = field(default_factory=dict)
    _folded: dict[tuple[str, str], str] = field(default_factory=dict)

    def kinds_of(self, name: str) -> tuple[str, ...]:
        """The kinds of weights that a source has under a name."""
        wholes = self.arrangement.wholes
        return tuple(w.state for w in wholes if w.name == name and w.state in WEIGHTS)

    def drop(self, name: str, state: str, why: str) -> None:
        """Say that a tensor has no place."""
        self._dropped[name, state] = why

    def fold(self, name: str, state: str, how: str) -> None:
        """Say that a tensor is there as part of something else."""
        self._folded[name, state] = how

    def dropped(self) -> tuple[tuple[str, str, str], ...]:
        """For `Output.dropped`."""
        return tuple((name, state, why) for (name, state), why in self._dropped.items())

    def folded(self) -> tuple[tuple[str, str, str], ...]:
        """For `Output.folded`."""
        return tuple((name, state, how) for (name, state), how in self._folded.items())

    def warnings(self) -> tuple[Diagnostic, ...]:
        """For `Output.warnings`."""
        return (*self.settings.warning(), *self.warned)


def contents_of(arrangement: Arrangement, group_keys: Mapping[str, str] | None = None) -> Contents:
    """Sort a source.

    Args:  group_keys: hyper-parameters that the target wants besides, and which they are where the
           source does not tell them.
    """
    catalog = arrangement.catalog
    own = catalog.training.of("dcp")
    out = Contents(arrangement, iteration=catalog.training.iteration)
    out.aliases = dict(catalog.aliases or {})
    kinds: dict[str, dict[str, Whole]] = {}
    for whole in arrangement.wholes:
        if whole.state != EXTRA:
            kinds.setdefault(whole.name, {})[whole.state] = whole
    for whole in arrangement.wholes:
        if whole.state == EXTRA:
            _sort_extra(out, whole, own, kinds)
    _sort_weights(out, kinds)
    _sort_states(out, kinds)
    trained = [name for name in kinds if name in out.states]
    states = {state for held in out.states.values() for state in held}
    if trained:
        out.settings = settings_of(catalog.training, trained, states, group_keys or {})
    _sort_objects(out, own)
    out.warned += _left_behind(catalog.training)
    return out


def _sort_extra(
    out: Contents, whole: Whole, own: Mapping[str, object], names: Collection[str]
) -> None:
    """A tensor of no parameter.

    Args:  own: what a checkpoint of this format kept for itself.  names: of the parameters.
    """
    unlike = own.get("unlike")
    owner = unlike.get(whole.name) if isinstance(unlike, dict) else None
    if isinstance(owner, list) and owner[0] not in names:
        why = "it has not the shape of its parameter, which has another name here"
        out.drop(whole.name, EXTRA, why)
        return
    if own:
        out.extras.append((_path(own, whole.name), whole))
        return
    why = "it belongs to no parameter, and only the program that wrote it reads it"
    out.drop(whole.name, EXTRA, why)


def _sort_weights(out: Contents, kinds: Mapping[str, Mapping[str, Whole]]) -> None:
    first: dict[object, str] = {}
    for name, held in kinds.items():
        master, param = held.get(MASTER), held.get(PARAM)
        chosen = master or param
        if chosen is not None:
            out.weights[name] = chosen
            if chosen.segments and first.setdefault(chosen.segments, name) != name:
                out.aliases[name] = first[chosen.segments]
        if master is not None and param is not None:
            out.fold(name, PARAM, "the master weights, from which it is rounded")


def _sort_states(out: Contents, kinds: Mapping[str, Mapping[str, Whole]]) -> None:
    """States of the optimizer; of tied weights, which it trains once, under the first name."""
    first: dict[tuple[object, str], str] = {}
    for name, held in kinds.items():
        for state, whole in held.items():
            if state in WEIGHTS:
                continue
            known = first.setdefault((whole.segments, state), name)
            if known != name and whole.segments:
                out.fold(name, state, f"that of `{known}`, which it is tied to")
            else:
                out.states.setdefault(name, {})[state] = whole


def _sort_objects(out: Contents, own: Mapping[str, object]) -> None:
    objects = own.get("objects")
    if isinstance(objects, dict):
        out.objects += [(_path(own, key), value) for key, value in objects.items()]
    schedule = None if own else out.arrangement.catalog.training.scheduler
    if isinstance(schedule, dict) and not any(str(key).startswith("$") for key in schedule):
        out.objects += [(("lr_scheduler", str(key)), value) for key, value in schedule.items()]


def _left_behind(training: Run) -> list[Diagnostic]:
    """Warnings for what the source knows of its training that has no place here."""
    framework = training.framework
    if training.of("dcp"):
        ranks = framework.get("rank_objects")
        if not isinstance(ranks, dict) or not ranks:
            return []
        differing = dict.fromkeys(key for held in ranks.values() for key in held)
        return [
            Diagnostic(
                "dcp-rank-objects",
                "objects that differ from rank to rank are written as the first rank has them",
                "warning",
                notes=(f"they are {_listed(differing)}",),
                helps=("keep the source, or convert to `universal`, which keeps all of them",),
            )
        ]
    facts = ("name", "version", "layout", "kept")
    left = {key: value for key, value in framework.items() if key not in facts}
    left |= {k: v for k, v in training.state.items() if k != "lr_scheduler"}
    keys = [key for key, value in left.items() if value not in (None, "", [], {}, (), False)]
    described = "kept" in framework or "layout" in framework
    keys += [item.key for item in kept_keys(training)] if described else []
    if not keys:
        return []
    name = "the source" if described else framework.get("name") or "the source"
    return [
        Diagnostic(
            "dcp-left",
            f"what only {name} resumes with is not written",
            "warning",
            notes=(f"it is {_listed(keys)}",),
            helps=("keep the source, or convert to `universal`, which keeps it",),
        )
    ]


def _listed(keys: Iterable[str]) -> str:
    names = [f"`{key}`" for key in keys]
    return ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")


def _path(framework: Mapping[str, object], key: str) -> Path:
    paths = framework.get("paths")
    told = paths.get(key) if isinstance(paths, dict) else None
    return tuple(told) if isinstance(told, list) else (key,)
