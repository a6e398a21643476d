"""Which key of a distributed state dict is a weight, an optimizer state, or something else.

A key goes by its path, the keys of the nested dicts that it was flattened from. Nothing is told by
the end of a key alone:

    optimizer   what has `state` next to `param_groups`, or lies under an optimizer's name
    parameter   what the optimizer describes: owners of hyper-parameters, and names in the model
    model       the dict in which the names lie that an optimizer trains
    state       the rest of the path behind the parameter, however deep it is nested

Source: torch/distributed/checkpoint/state_dict.py `get_state_dict`, `_flatten_optim_state_dict`;
torchtitan components/optimizer/utils.py `get_flat_optim_state_dict`; accelerate
utils/fsdp_utils.py; OLMo-core train/train_module/transformer/ddp_train_module.py
`save_state_dict_direct`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reshard.errors import ReshardError, source_error
from reshard.formats.dcp.wrappers import unwrapped
from reshard.run.states import EXTRA, MASTER, PARAM

Path = tuple[str | int, ...]

MODELS = ("model", "module", "state_dict")
"""What a model's state dict is called."""

APART = (
    "lr_scheduler",
    "lr_schedulers",
    "scheduler",
    "dataloader",
    "train_state",
    "rng",
    "rng_state",
    "trainer",
    "extra_state",
)
"""What else stands next to a model whose keys are not within a dict of their own."""

_OPTIMIZER = re.compile(r"optim(izer)?s?(_\d+)?")

_MASTERS = ("main", "master")
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_SUFFIXES = (*_MASTERS, *_MOMENTS, "step")
"""States that OLMo-core stores under the name of their weight, without an optimizer's dict."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor or an object is.

    Args:  name: of the parameter as its own dict names it, or the key itself.
           state: state kind; `extra` for what belongs to no parameter.
           number: instead of a name, where an optimizer counts its parameters.
           optimizer: the path of the optimizer that it is a state of.
    """

    name: str
    state: str
    number: int | None = None
    optimizer: Path | None = None


@dataclass(frozen=True, slots=True)
class GroupKey:
    """A hyper-parameter.

    Args:  owner: the index of the group, or the parameter that it is kept for; None for a list of
           whole groups.  key: its name.
    """

    optimizer: Path
    owner: int | str | None
    key: str


class Names:
    """Tells the roles of the keys of one checkpoint.

    Args:  paths: by key, as `.metadata` tells them; a key without one is split by what it begins
                  with.
           tensors, objects: all keys.
           role: `model` or `optimizer` where the folder says what it holds.
    Raises: ReshardError[several-models].
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        tensors: Iterable[str],
        objects: Iterable[str] = (),
        *,
        role: str = "all",
        where: str = "",
    ) -> None:
        self._tensors = list(tensors)
        keys = [*self._tensors, *objects]
        self._paths = {key: paths.get(key) or _split(key) for key in keys}
        self._where = where
        self.optimizers: tuple[Path, ...] = ()
        self._bare: tuple[Path, ...] = ()
        self._described: set[str] = set()
        if role != "model":
            self.optimizers = self._find_optimizers(role)
            self._described = self._find_described()
            self._bare = self._find_bare()
            self.optimizers = (*self.optimizers, *self._bare)
        self.trained = self._trained()
        if not paths and any(key.removeprefix("model.") in self.trained for key in keys):
            self._paths.update(
                (key, ("model", key.removeprefix("model.")))
                for key in keys
                if key.startswith("model.")
            )
        self.model: Path = self._find_model(role)
        self._flat_heads = self._heads() if self.model == () and role == "all" else None
        self.suffixed = self._find_suffixed()

    def path(self, key: str) -> Path:
        """The nested keys."""
        return self._paths[key]

    def role(self, key: str) -> Role:
        """The role of a tensor."""
        path = self._paths[key]
        state_role = self._state(path)
        if state_role is not None:
            return state_role
        name = self._weight(path)
        if name is None:
            return Role(key, EXTRA)
        stem, _, state = name.rpartition(".")
        if stem in self.suffixed and state in _SUFFIXES:
            return Role(stem, MASTER if state in _MASTERS else state)
        return Role(name, PARAM)

    def group_key(self, key: str) -> GroupKey | None:
        """The hyper-parameter that a tensor or an object is; None if it is none."""
        path = self._paths[key]
        optimizer = self._optimizer_of(path)
        if optimizer is None:
            return None
        rest = path[len(optimizer) :]
        if rest == ("param_groups",):
            return GroupKey(optimizer, None, "")
        if rest and rest[0] == "param_groups" and len(rest) >= 3:
            owner = rest[1] if isinstance(rest[1], int) else _joined(rest[1:-1])
            return GroupKey(optimizer, owner, str(rest[-1]))
        if len(rest) == 1 and str(rest[0]).startswith("param_groups."):
            name, _, last = str(rest[0]).removeprefix("param_groups.").rpartition(".")
            return GroupKey(optimizer, name, last)
        return None

    def state_of(self, key: str) -> Role | None:
        """The optimizer state that an object is (a `step` that is a plain number)."""
        return self._state(self._paths[key])

    def _weight(self, path: Path) -> str | None:
        """The name of a tensor of the model; None for what is none."""
        if str(path[-1]).rpartition(".")[2] == "_extra_state":
            return None  # what a module keeps besides, of no shape of its own
        inside = len(path) > len(self.model) and path[: len(self.model)] == self.model
        if inside and self._optimizer_of(path) is None and self._is_flat_model(path):
            return _joined(path[len(self.model) :])
        return None

    def _state(self, path: Path) -> Role | None:
        optimizer = self._optimizer_of(path)
        if optimizer is None:
            return None
        text = _joined(path[len(optimizer) :])
        if optimizer not in self._bare:
            if not text.startswith("state."):
                return None
            text = text.removeprefix("state.")
        name, state = self._cut(text)
        if not name or not state:
            return None
        number = int(name) if name.isdecimal() else None
        return Role(name, state, number, optimizer)

    def _cut(self, text: str) -> tuple[str, str]:
        """A parameter and its state: the longest name that is described, else all but the end."""
        head, dot, state = text.rpartition(".")
        while dot:
            if head in self._described:
                return head, text[len(head) + 1 :]
            head, dot, _ = head.rpartition(".")
        first, _, rest = text.partition(".")
        if first.isdecimal():
            return first, rest
        name, _, state = text.rpartition(".")
        return name, state

    def _optimizer_of(self, path: Path) -> Path | None:
        for optimizer in self.optimizers:
            if len(path) > len(optimizer) and path[: len(optimizer)] == optimizer:
                rest = str(path[len(optimizer)])
                if optimizer or rest.partition(".")[0] in ("state", "param_groups"):
                    return optimizer
        return None

    def _find_optimizers(self, role: str) -> tuple[Path, ...]:
        """The paths of all optimizers, the longest first."""
        paths: dict[Path, None] = {}
        for path in self._paths.values():
            for at, part in enumerate(path):
                word = str(part).partition(".")[0]
                named = at > 0 and _OPTIMIZER.fullmatch(str(path[at - 1]))
                bare = at == 0 and role == "optimizer" and word == "state"
                if word == "param_groups" or (word == "state" and (named or bare)):
                    paths[path[:at]] = None
                    break
        return tuple(sorted(paths, key=len, reverse=True))

    def _find_bare(self) -> tuple[Path, ...]:
        """Those that are called so, and hold states by parameter without `state` above them."""
        paths: dict[Path, None] = {}
        for key in self._tensors:
            path = self._paths[key]
            for at, part in enumerate(path[:-1]):
                if _OPTIMIZER.fullmatch(str(part)) and self._optimizer_of(path) is None:
                    text = _joined(path[at + 1 :])
                    if self._cut(text)[0] in self._described:
                        paths[path[: at + 1]] = None
                    break
        return tuple(sorted(paths, key=len, reverse=True))

    def _find_described(self) -> set[str]:
        """Names that may be parameters: owners of hyper-parameters, and all outside optimizers."""
        out = set()
        for key in self._paths:
            group = self.group_key(key)
            if group is not None and isinstance(group.owner, str):
                out.add(group.owner)
        for path in self._outside():
            if any(_OPTIMIZER.fullmatch(str(part)) for part in path):
                continue
            for at in range(len(path)):
                name = _joined(path[at:])
                out.update((name, unwrapped(name)))
        return out

    def _outside(self) -> Iterator[Path]:
        """The paths of tensors that belong to no optimizer."""
        for key in self._tensors:
            path = self._paths[key]
            if path and self._optimizer_of(path) is None:
                yield path

    def _trained(self) -> set[str]:
        """The names of the parameters that an optimizer has states of."""
        states = (self._state(self._paths[key]) for key in self._tensors)
        return {role.name for role in states if role is not None and role.number is None}

    def _find_model(self, role: str) -> Path:
        """The path of the model."""
        if role == "optimizer":
            return ("model",)  # nothing of it is here
        others = list(self._outside())
        wanted = {*self.trained, *map(unwrapped, self.trained)}
        votes: Counter[Path] = Counter()
        for path in others:
            for at in range(len(path)):
                name = _joined(path[at:])
                if name in wanted or unwrapped(name) in wanted:
                    votes[path[:at]] += 1
        if votes:
            most = max(votes.values())
            best = [path for path, count in votes.items() if count == most]
            called = [path for path in best if path and path[-1] in MODELS]
            if len(best) > 1 and len(called) != 1:
                raise self._several(best)
            return called[0] if called else best[0]
        named = [
            path[: at + 1] for path in others for at, part in enumerate(path[:-1]) if part in MODELS
        ]
        if role == "model" and len(named) < len(others):
            return ()  # all of it is the model
        return min(named, key=len, default=())

    def _find_suffixed(self) -> frozenset[str]:
        """Parameters whose states stand next to them, under their names."""
        states_of: dict[str, set[str]] = {}
        for path in self._outside():
            stem, dot, last = (self._weight(path) or "").rpartition(".")
            if dot and last in _SUFFIXES:
                states_of.setdefault(stem, set()).add(last)
        return frozenset(
            stem for stem, lasts in states_of.items() if len(lasts) > 1 and lasts & {*_MOMENTS}
        )

    def _heads(self) -> set[str | int] | None:
        """The first keys of parameters, where the model's keys stand among others."""
        if not self.trained:
            return None
        paths = (self._paths[key] for key in self._tensors)
        return {path[0] for path in paths if _joined(path) in self.trained}

    def _is_flat_model(self, path: Path) -> bool:
        """Whether a key that stands at the top is of the model."""
        if self.model != ():
            return True
        if len(path) > 1 and path[0] in APART:
            return False
        return self._flat_heads is None or len(path) == 1 or path[0] in self._flat_heads

    def _several(self, paths: list[Path]) -> ReshardError:
        listed = ", ".join(f"`{_joined(path) or '(top)'}`" for path in paths)
        return source_error(
            "several-models",
            f"{self._where} holds several models or optimizers",
            notes=[f"the optimizer trains names that are in {listed}"],
            helps=["save the one that is trained as `model`"],
        )


def _joined(path: Path) -> str:
    return ".".join(map(str, path))


def _split(key: str) -> Path:
    """The path of a key whose file does not tell one."""
    head, dot, rest = key.partition(".")
    if dot and _OPTIMIZER.fullmatch(head) and rest.startswith(("state.", "param_groups.")):
        return (head, rest)
    if dot and head in APART:
        return (head, rest)
    return (key,)
