"""A training run as a checkpoint knows it, besides its tensors.

Values are JSON; what JSON does not have is tagged (`storage.kept` makes it and reads it back).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

_PARAMS = "params"
_SCALING = ("loss_scaler", "dynamic_loss_scale", "overflow")
_CLIPPING = "clip_grad"


class Group(dict[str, object]):
    """One param group: hyper-parameters by name, and under `params` the names of its parameters.

    A dict, so that it is JSON as it stands; it is not changed once it is made.

    Args:  settings: hyper-parameters, as tagged JSON.
           params: names in the order of the optimizer; None where the source does not list them.
    """

    __slots__ = ()

    def __init__(self, settings: Mapping[str, object], params: Iterable[str] | None = None) -> None:
        super().__init__(settings)
        if params is not None:
            self[_PARAMS] = list(params)

    @classmethod
    def of(cls, value: Mapping[str, object]) -> Group:
        """A group of its JSON form."""
        params = value.get(_PARAMS)
        if not isinstance(params, list | tuple):
            return cls(value)
        return cls({key: item for key, item in value.items() if key != _PARAMS}, map(str, params))

    @property
    def params(self) -> tuple[str, ...] | None:
        """Names of its parameters; None where the source does not list them."""
        params = self.get(_PARAMS)
        return tuple(params) if isinstance(params, list) else None

    @property
    def members(self) -> tuple[str, ...]:
        """Names of its parameters, as far as they are listed."""
        return self.params or ()

    @property
    def settings(self) -> dict[str, object]:
        """Hyper-parameters."""
        return {key: value for key, value in self.items() if key != _PARAMS}

    def with_params(self, change: Callable[[tuple[str, ...]], Iterable[str]]) -> Group:
        """The group with other parameters; itself where it does not list them."""
        return self if self.params is None else Group(self.settings, change(self.params))


@dataclass(frozen=True, slots=True)
class Run:
    """What a checkpoint knows besides tensors (docs/universal-format.md).

    Args:  iteration: optimizer steps done, None if unknown.
           param_groups: hyper-parameters and parameters of each group.
           state: what other frameworks have too, by name: `lr_scheduler`, `loss_scaler`,
                  `dynamic_loss_scale`, `clip_grad`, ...
           framework: what only the framework that wrote it understands, for a way back; its `name`
                  says which one it is.
    """

    iteration: int | None = None
    param_groups: tuple[Group, ...] = ()
    state: Mapping[str, object] = field(default_factory=dict)
    framework: Mapping[str, object] = field(default_factory=dict)

    @property
    def scheduler(self) -> object:
        """The state of the learning rate's scheduler; None if there is none."""
        return self.state.get("lr_scheduler")

    @property
    def has_settings(self) -> bool:
        """Whether the hyper-parameters of the param groups are known."""
        return any(group.settings for group in self.param_groups)

    @property
    def writer(self) -> str:
        """The framework that it is of; empty if it is of none."""
        return str(self.framework.get("name") or "")

    def of(self, framework: str) -> Mapping[str, object]:
        """What a framework kept for itself; nothing where another one wrote the checkpoint."""
        return self.framework if self.writer == framework else {}

    def scaling(self, *, same: bool) -> dict[str, object]:
        """Gradient clipping, and the loss scaler for a run of the same precision alone.

        Another run's scaler would scale what must not be, or not scale what must.
        """
        keys = (*_SCALING, _CLIPPING) if same else (_CLIPPING,)
        return {key: self.state[key] for key in keys if self.state.get(key) is not None}

    def with_params(self, change: Callable[[tuple[str, ...]], Iterable[str]]) -> Run:
        """The run with other names of parameters in its groups.

        Args:  change: what a group's parameters become.
        """
        groups = tuple(group.with_params(change) for group in self.param_groups)
        return replace(self, param_groups=groups)
