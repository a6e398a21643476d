"""One name for a parameter that wrappers name in several ways.

What wraps a module puts a level into the names of its parameters, and some state dicts are saved
with it, some without. A parameter goes by its name without wrappers.
Source: torch/distributed/checkpoint/state_dict.py `_get_fqns`; torch/_dynamo/eval_frame.py
`OptimizedModule`; torch/nn/parallel/distributed.py; peft/utils/save_and_load.py (0.17).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from reshard.run.states import PARAM

_LEVELS = frozenset(
    {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module"}
)
"""torch.compile, activation checkpoints, and FSDP, which may wrap any module."""

_OUTERMOST = "module."
"""DistributedDataParallel, which wraps the whole model."""

_ADAPTER = "default"
"""PEFT's name of an adapter, which its saved files leave out."""


def unwrapped(name: str) -> str:
    """A name without the levels of wrappers."""
    if not any(level in name for level in _LEVELS):
        return name
    return ".".join(part for part in name.split(".") if part not in _LEVELS) or name


@dataclass(frozen=True, slots=True)
class Called:
    """Names of parameters by what their dicts call them.

    Args:  weights: of the model's dict.  states: of the optimizer's.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str, state: str) -> str:
        """The name of the parameter that a tensor of one of the dicts belongs to."""
        known = self.weights if state == PARAM else self.states
        return known.get(name, name)

    def kept(self) -> dict[str, dict[str, str]]:
        """What the dicts call parameters that go by another name, for a way back."""
        return {
            kind: {name: stored for stored, name in known.items() if name != stored}
            for kind, known in (("weights", self.weights), ("states", self.states))
        }


def called(
    weights: Collection[str], states: Collection[str], *, is_attribute: bool = False
) -> Called:
    """The one name of every parameter.

    Args:  weights: names in the model.  states: names in the optimizer, of states or in groups.
           is_attribute: whether the model is an attribute of the module that was saved, as in a
                         LightningModule; what that is called is then no part of the names.
    """
    of_weights, of_states = _without_wrappers(weights), _without_wrappers(states)
    attribute = _common_level([*of_weights.values(), *of_states.values()])
    if is_attribute and attribute:
        of_weights, of_states = (
            {raw: name.removeprefix(attribute) for raw, name in known.items()}
            for known in (of_weights, of_states)
        )
    known, trained = {*of_weights.values()}, {*of_states.values()}
    lost = trained - known
    for meet in (_by_adapter, _by_prefix):
        found = meet(lost, known - trained)
        if found:
            of_states = {raw: found.get(name, name) for raw, name in of_states.items()}
            lost -= found.keys()
    return Called(of_weights, of_states)


def _without_wrappers(names: Iterable[str]) -> dict[str, str]:
    out = {name: name for name in names}
    for strip in (unwrapped, _without_outermost(out)):
        found = {raw: strip(name) for raw, name in out.items()}
        if len({*found.values()}) == len(found):
            out = found  # each is still told from the others
    return out


def _without_outermost(names: Iterable[str]) -> Callable[[str], str]:
    is_wrapped = all(unwrapped(name).startswith(_OUTERMOST) for name in names)
    return lambda name: name.removeprefix(_OUTERMOST) if is_wrapped else name


def _common_level(names: Collection[str]) -> str:
    """The first level of names, with its dot, where all have the same one."""
    levels = {name.partition(".")[:2] for name in names}
    return "".join(levels.pop()) if len(levels) == 1 and all("." in name for name in names) else ""


def _by_adapter(lost: Collection[str], free: Collection[str]) -> dict[str, str]:
    """Names that meet a weight's once the name of an adapter is left out of them."""
    out = {}
    for name in lost:
        short = ".".join(part for part in name.split(".") if part != _ADAPTER)
        if short in free:
            out[name] = short
    return out if len({*out.values()}) == len(out) else {}


def _by_prefix(lost: Collection[str], free: Collection[str]) -> dict[str, str]:
    """Names of a part of the model: all of them meet a weight's behind the same prefix."""
    for first in sorted(lost, key=len, reverse=True)[:1]:
        ends = [name for name in free if name.endswith(f".{first}")]
        prefixes = [name[: -len(first)] for name in ends]
        fitting = [p for p in prefixes if all(f"{p}{name}" in free for name in lost)]
        if len(fitting) == 1:
            return {name: f"{fitting[0]}{name}" for name in lost}
    return {}
