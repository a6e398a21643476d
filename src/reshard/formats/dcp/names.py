"""Which key of a distributed state dict is a weight, an optimizer state, or something else.

Source: torch/distributed/checkpoint/state_dict.py `get_state_dict` and `_flatten_optim_state_dict`;
torchtitan/components/checkpoint.py; accelerate/utils/fsdp_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OPTIMIZERS = ("optim", "optimizer")
"""What the optimizer's state dict is called."""

_MODEL = "model"
_APART = (*OPTIMIZERS, "lr_scheduler", "dataloader", "train_state", "scheduler", "rng", "trainer")


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor is.

    Args:  name: of the parameter, or of the tensor itself.
           state: state kind, `extra` for the rest.
    """

    name: str
    state: str


class Names:
    """Tells the roles of the keys of one checkpoint.

    Args:  paths: by key, the keys of the nested dicts; a key without a path is taken as one word.
           keys: all of the checkpoint.
    """

    def __init__(self, paths: Mapping[str, tuple[str | int, ...]], keys: Iterable[str]) -> None:
        self._paths = paths
        heads = {str(self.path(key)[0]) for key in keys}
        self._nested = _MODEL in heads
        self._flat_model = not self._nested

    def path(self, key: str) -> tuple[str | int, ...]:
        """The nested keys; without them, what is before the first dot where it is a known word."""
        stated = self._paths.get(key)
        if stated:
            return stated
        head, dot, rest = key.partition(".")
        if dot and head in OPTIMIZERS and rest.startswith("state."):
            return (head, rest)
        if dot and head in (_MODEL, *_APART):
            return (head, rest)
        return (key,)

    def role(self, key: str) -> Role | int:
        """The role of a tensor; an integer id where the optimizer counts its parameters instead."""
        path = self.path(key)
        head = str(path[0])
        if head in OPTIMIZERS and len(path) > 1:
            return self._optimizer(key, path)
        if self._nested and head == _MODEL and len(path) > 1:
            return Role(".".join(map(str, path[1:])), "param")
        if self._flat_model and head not in _APART:
            return Role(".".join(map(str, path)), "param")
        return Role(key, "extra")

    def _optimizer(self, key: str, path: tuple[str | int, ...]) -> Role | int:
        if path[1] == "state" and len(path) >= 4:
            owner, state = path[2:-1], str(path[-1])
            if len(owner) == 1 and isinstance(owner[0], int):
                return owner[0]
            return Role(".".join(map(str, owner)), state)
        if len(path) == 2 and str(path[1]).startswith("state."):
            name, _, state = str(path[1]).removeprefix("state.").rpartition(".")
            return int(name) if name.isdigit() else Role(name, state)
        return Role(key, "extra")


def group_path(path: tuple[str | int, ...]) -> tuple[str | int, str] | None:
    """The group (or parameter) and hyper-parameter of a key of `param_groups`; else None."""
    if len(path) < 2 or str(path[0]) not in OPTIMIZERS:
        return None
    if path[1] == "param_groups" and len(path) >= 4:
        owner = path[2] if isinstance(path[2], int) else ".".join(map(str, path[2:-1]))
        return owner, str(path[-1])
    if len(path) == 2 and str(path[1]).startswith("param_groups."):
        name, _, key = str(path[1]).removeprefix("param_groups.").rpartition(".")
        return name, key
    return None
