"""How a state dict is put together: where the model and the optimizer stand in it.

And what reshard notes of weights in `.metadata` for a way back; torch takes no notice of it. It is
a further attribute of the root, `reshard`, a dict: `master`, names of weights that are the fp32
master weights of a run that computes in another type; `aliases`, other names of tied weights, also
where there are none: then weights that are alike are not tied; `names`, the format whose own names
the weights have, where that is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reshard.formats.dcp.names import Path, Role
from reshard.run.run import Group, Run
from reshard.run.states import MASTER, PARAM

_KEY = "reshard"


@dataclass(frozen=True, slots=True)
class Form:
    """Where things stand.

    Args:  model, optimizer: paths of their state dicts.  flattened: whether the optimizer's has one
           level, `state.<name>.exp_avg`, as `flatten_optimizer_state_dict` makes it.
           optimizers: paths of the optimizers of parameters, where there are several; of_groups:
           the same of param groups, by their index.
           weights, states: what the dicts call parameters that go by another name (`wrappers`).
    """

    model: Path = ("model",)
    optimizer: Path = ("optim",)
    flattened: bool = False
    weights: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    optimizers: Mapping[str, Path] = field(default_factory=dict)
    of_groups: Mapping[int, Path] = field(default_factory=dict)

    def weight_name(self, name: str) -> str:
        """What the dict of the model calls a parameter."""
        return self.weights.get(name, name)

    def state_name(self, name: str) -> str:
        """What the dict of the optimizer calls a parameter."""
        return self.states.get(name, name)

    def weight(self, name: str) -> Path:
        """The path of a parameter."""
        return (*self.model, self.weight_name(name))

    def state(self, name: str, state: str) -> Path:
        """The path of a state of the optimizer."""
        at = self.optimizers.get(name, self.optimizer)
        return self._path(at, "state", self.state_name(name), state)

    def setting(self, owner: int | str, key: str, at: Path | None = None) -> Path:
        """The path of a hyper-parameter, of a group or of a parameter.

        Args:  at: the path of the optimizer, where it is not the only one.
        """
        at = self.optimizer if at is None else at
        owner = self.state_name(owner) if isinstance(owner, str) else owner
        return self._path(at, "param_groups", owner, key)

    def groups(self, groups: Sequence[Group]) -> Iterator[tuple[Path, int, Group]]:
        """The param groups, each with the path of its optimizer and its number in it."""
        counts: Counter[Path] = Counter()
        for index, group in enumerate(groups):
            paths = dict.fromkeys(self.optimizers.get(n, self.optimizer) for n in group.members)
            for path in paths or (self.of_groups.get(index, self.optimizer),):
                own = [n for n in group.members if self.optimizers.get(n, self.optimizer) == path]
                yield path, counts[path], Group(group.settings, own) if len(paths) > 1 else group
                counts[path] += 1

    def _path(self, at: Path, *keys: int | str) -> Path:
        return (*at, joined(keys)) if self.flattened else (*at, *keys)


def form_of(training: Run) -> Form | None:
    """The form of a source; None where it is of another framework or of several folders."""
    form = training.of("dcp").get("form")
    if not isinstance(form, dict) or form.get("kind") != "dcp":
        return None
    model, optimizer = form.get("model"), form.get("optimizer")
    return Form(
        tuple(model) if isinstance(model, list) else ("model",),
        tuple(optimizer) if isinstance(optimizer, list) else ("optim",),
        bool(form.get("flattened")),
        _names(form.get("weights")),
        _names(form.get("states")),
        *_optimizers(form.get("optimizers"), training.param_groups),
    )


def _optimizers(kept: object, groups: Sequence[Group]) -> tuple[dict[str, Path], dict[int, Path]]:
    """The optimizers of parameters and of groups, as `training` notes them."""
    optimizers: dict[str, Path] = {}
    of_groups: dict[int, Path] = {}
    for item in kept if isinstance(kept, list) else ():
        path, numbers, params = (item.get(key) for key in ("path", "groups", "params"))
        if isinstance(path, list) and isinstance(numbers, list) and isinstance(params, list):
            optimizers |= dict.fromkeys(params, tuple(path))
            of_groups |= dict.fromkeys(numbers, tuple(path))
    for index, group in enumerate(groups):
        if index in of_groups:
            optimizers |= dict.fromkeys(group.members, of_groups[index])
    return optimizers, of_groups


def _names(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def joined(path: Path) -> str:
    """The key of a path."""
    return ".".join(map(str, path))


@dataclass(frozen=True, slots=True)
class Mark:
    """What reshard noted.

    Args:  is_there: whether reshard wrote the folder.
    """

    is_there: bool = False
    master: Collection[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    names_of: str = ""

    def role(self, role: Role) -> Role:
        """What a tensor is: a master weight where that was noted."""
        is_master = role.name in self.master or self.aliases.get(role.name) in self.master
        return replace(role, state=MASTER) if role.state == PARAM and is_master else role

    def attribute(self) -> dict[str, object]:
        """The attribute to write."""
        noted: dict[str, object] = {"aliases": dict(self.aliases)}
        if self.names_of:
            noted["names"] = self.names_of
        if self.master:
            noted["master"] = list(self.master)
        return {_KEY: noted}


def read_mark(extra: Mapping[str, object]) -> Mark:
    """What was noted.

    Args:  extra: attributes of the root of `.metadata` that are not of the format.
    """
    noted = extra.get(_KEY)
    if not isinstance(noted, dict):
        return Mark()
    master, names = noted.get("master"), noted.get("names")
    return Mark(
        True,
        frozenset(map(str, master)) if isinstance(master, list) else frozenset(),
        _names(noted.get("aliases")),
        names if isinstance(names, str) else "",
    )


def left_attributes(extra: Mapping[str, object]) -> list[str]:
    """The attributes that nothing reads, and that say something; versions of writers do not."""
    known = {key for key, value in extra.items() if value in (None, "", [], {}, ())}
    return [key for key in extra if key not in {*known, _KEY} and not key.endswith("_version")]
