"""The hyper-parameters of an optimizer, complete as torch's loader asks for them.

`load` wants every key that the optimizer of the run has.  What the source does not tell is written
as torch's AdamW has it by default, and said.
Source: torch/optim/adamw.py, torch/optim/adam.py `Adam.__init__` (2.13).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import Diagnostic
from reshard.run.run import Group, Run
from reshard.run.states import MOMENTS

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
    """All groups, with those parameters alone that have states; and what was made up for them,
    as what.
    """

    groups: tuple[Group, ...]
    assumed: Mapping[str, str]

    def of(self, names: Collection[str]) -> Settings:
        """The groups with these parameters alone."""
        groups = (g.with_params(lambda own: [n for n in own if n in names]) for g in self.groups)
        return Settings(tuple(groups), self.assumed)

    def warning(self) -> tuple[Diagnostic, ...]:
        """What the source does not tell."""
        if not self.assumed:
            return ()
        listed = ", ".join(f"`{key}` as {value}" for key, value in self.assumed.items())
        return (
            Diagnostic(
                "dcp-defaults",
                "the source does not record all hyper-parameters of the optimizer",
                "warning",
                notes=(
                    f"written: {listed}",
                    "PyTorch's loader asks for every one that the optimizer of the run has, and "
                    "takes it over",
                ),
                helps=("set them in the param groups again after loading",),
            ),
        )


def settings_of(
    training: Run,
    trained: Sequence[str],
    states: set[str],
    extra: Mapping[str, str],
) -> Settings:
    """The param groups of a source for the parameters that have states.

    Args:  trained: names in the order of the model.  states: kinds of state.
           extra: further keys, and which they are where they are not told.
    """
    known = set(trained)
    groups, owned = [], set[str]()
    for item in training.param_groups:
        names = item.members
        groups.append(([name for name in names if name in known], item.settings))
        owned.update(names)
    rest = [name for name in trained if name not in owned]
    if rest and len(groups) == 1:
        groups[0][0].extend(rest)
    elif rest:
        groups.append((rest, {}))
    assumed: dict[str, str] = {}
    out = []
    for params, settings in groups:
        if states >= {*MOMENTS}:
            for key, value in _ADAMW.items():
                if key not in settings:
                    settings[key] = value
                    assumed[key] = _shown(value)
        for key, other in extra.items():
            if key not in settings and other in settings:
                settings[key] = settings[other]
                assumed[key] = f"`{other}`"
        out.append(Group(settings, params))
    return Settings(tuple(out), assumed)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return str(tuple(value["$tuple"]))
    return str(value)
