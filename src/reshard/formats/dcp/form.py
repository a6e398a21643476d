"""How a state dict is put together: where the model and the optimizer stand in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from reshard.formats.dcp.names import Path


@dataclass(frozen=True, slots=True)
class Form:
    """Where things stand.

    Args:  model, optimizer: paths of their state dicts.  flattened: whether the optimizer's has one
           level, `state.<name>.exp_avg`, as `flatten_optimizer_state_dict` makes it.
    """

    model: Path = ("model",)
    optimizer: Path = ("optim",)
    flattened: bool = False

    def weight(self, name: str) -> Path:
        """The path of a parameter."""
        return (*self.model, name)

    def state(self, name: str, state: str) -> Path:
        """The path of a state of the optimizer."""
        if self.flattened:
            return (*self.optimizer, f"state.{name}.{state}")
        return (*self.optimizer, "state", name, state)

    def setting(self, owner: int | str, key: str) -> Path:
        """The path of a hyper-parameter, of a group or of a parameter."""
        if self.flattened:
            return (*self.optimizer, f"param_groups.{owner}.{key}")
        return (*self.optimizer, "param_groups", owner, key)


def form_of(framework: Mapping[str, object]) -> Form | None:
    """The form of a source; None where it is of another framework or of several folders."""
    told = framework.get("form")
    if framework.get("name") != "dcp" or not isinstance(told, dict) or told.get("kind") != "dcp":
        return None
    model, optimizer = told.get("model"), told.get("optimizer")
    return Form(
        tuple(cast("list[str]", model)) if isinstance(model, list) else ("model",),
        tuple(cast("list[str]", optimizer)) if isinstance(optimizer, list) else ("optim",),
        bool(told.get("flattened")),
    )


def joined(path: Path) -> str:
    """The key of a path."""
    return ".".join(map(str, path))
