"""How a state dict is put together: where the model and the optimizer stand in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from reshard.formats.dcp.names import Path


@dataclass(frozen=True, slots=True)
class Form:
    """Where things stand.

    Args:  model, optimizer: paths of their state dicts.  flattened: whether the optimizer's has one
           level, `state.<name>.exp_avg`, as `flatten_optimizer_state_dict` makes it.
           weights, states: what the dicts call parameters that go by another name (`wrappers`).
    """

    model: Path = ("model",)
    optimizer: Path = ("optim",)
    flattened: bool = False
    weights: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)

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
        name = self.state_name(name)
        if self.flattened:
            return (*self.optimizer, f"state.{name}.{state}")
        return (*self.optimizer, "state", name, state)

    def setting(self, owner: int | str, key: str) -> Path:
        """The path of a hyper-parameter, of a group or of a parameter."""
        owner = self.state_name(owner) if isinstance(owner, str) else owner
        if self.flattened:
            return (*self.optimizer, f"param_groups.{owner}.{key}")
        return (*self.optimizer, "param_groups", owner, key)


def form_of(own: Mapping[str, object]) -> Form | None:
    """The form of a source; None where it is of another framework or of several folders.

    Args:  own: what a checkpoint of this format kept for itself.
    """
    told = own.get("form")
    if not isinstance(told, dict) or told.get("kind") != "dcp":
        return None
    model, optimizer = told.get("model"), told.get("optimizer")
    return Form(
        tuple(cast("list[str]", model)) if isinstance(model, list) else ("model",),
        tuple(cast("list[str]", optimizer)) if isinstance(optimizer, list) else ("optim",),
        bool(told.get("flattened")),
        *(_names(told, key) for key in ("weights", "states")),
    )


def _names(told: Mapping[str, object], key: str) -> dict[str, str]:
    names = told.get(key)
    return {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}


def joined(path: Path) -> str:
    """The key of a path."""
    return ".".join(map(str, path))
