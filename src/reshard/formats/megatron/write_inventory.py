"""What of a source goes where in a Megatron checkpoint, and what has no place there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from reshard.dtypes import DType
from reshard.errors import ReshardError, target_error
from reshard.formats import inventory
from reshard.plan.arrangement import Arrangement
from reshard.plan.build import has_remainders
from reshard.run.states import EXTRA, MASTER, PARAM, STEP
from reshard.storage.numbers import Number

HALVES = (DType.BF16, DType.F16)


class Inventory(inventory.Inventory):
    """The tensors of a source, sorted for Megatron.

    Attributes:
        resting: names of what the optimizer does not have: buffers and frozen parameters.
        steps: by name of a parameter.
        remainders: names of bf16 weights of whose masters the source stores the lower halves.
    Raises: ReshardError[numbers-disagree | unreadable-number].
    """

    def __init__(self, arrangement: Arrangement) -> None:
        super().__init__(arrangement)
        catalog, states = arrangement.catalog, self.states
        for name in self.extras:
            self.lose(name, EXTRA, "state of one rank alone, which Megatron makes anew")
        self.steps = self.numbers.get(STEP, {})
        for state, numbers in self.numbers.items():
            for name in numbers if state != STEP else ():
                self.lose(name, state, "one number per parameter, for which there is no place")
        balanced = (name for name in states if name.endswith("expert_bias"))
        resting = {*catalog.buffers, *catalog.frozen, *balanced}
        self.resting = frozenset(n for n in resting if n in states and set(states[n]) == {PARAM})
        self.remainders = frozenset(
            name
            for name, kinds in states.items()
            if PARAM in kinds
            and kinds[PARAM].dtype is DType.BF16
            and has_remainders(arrangement, [key for key, _ in kinds[PARAM].segments])
        )

    @property
    def is_trained(self) -> bool:
        """Whether there are states of an optimizer."""
        return any(map(self.optimizer_states, self.states))

    @property
    def trained(self) -> list[str]:
        """The names of what the optimizer has."""
        return [name for name in self.states if name not in self.resting]

    def dtype(self, name: str) -> DType:
        """The type that weights are written in, which is the one they are stored in.

        Raises: ReshardError[megatron-weights].
        """
        kinds = self.states[name]
        if PARAM not in kinds:
            raise no_weights(name, kinds)
        return kinds[PARAM].dtype

    def main_dtype(self) -> DType:
        """The type of most weights."""
        counts: dict[DType, int] = {}
        for name, kinds in self.states.items():
            dtype = self.dtype(name)
            counts[dtype] = counts.get(dtype, 0) + prod(next(iter(kinds.values())).shape)
        return max(counts, key=lambda dtype: counts[dtype])

    def is_half(self, name: str) -> bool:
        """Whether the optimizer keeps a master of a parameter's weights."""
        return self.dtype(name) in HALVES

    def keeps_remainders(self, args: Mapping[str, object]) -> bool:
        """Whether the optimizer of a run with these arguments, the source's, keeps its masters as
        lower halves, as the source has them.
        """
        return (
            args.get("use_precision_aware_optimizer") is True
            and bool(self.remainders)
            and self.remainders.issuperset(n for n in self.trained if self.dtype(n) is DType.BF16)
        )

    def step(self, names: Iterable[str]) -> int | float | None:
        """The one step that parameters are at; None where no step is stored.

        Raises: ReshardError[megatron-steps].
        """
        return one_step(self.steps, names)

    def fold_steps(self) -> None:
        """Say that steps are written beside the states, not as arrays."""
        for name in self.steps:
            self.fold(name, STEP, "a number of the optimizer's")

    def lose_master(self, name: str) -> None:
        """Say that the optimizer keeps no master of weights that are fp32 themselves."""
        if MASTER in self.states[name] and not self.is_half(name):
            self.lose(name, MASTER, "the weights are fp32 themselves")

    def lose_states(self) -> None:
        """Say that nothing but weights is written."""
        for name, kinds in (*self.states.items(), *((name, (STEP,)) for name in self.steps)):
            for state in kinds:
                if state != PARAM:
                    self.lose(name, state, "Megatron resumes no optimizer without its param groups")


def one_step(steps: Mapping[str, Number], names: Iterable[str]) -> int | float | None:
    """The one step that parameters are at; None where no step is stored.

    Raises: ReshardError[megatron-steps].
    """
    values: dict[int | float, str] = {}
    for name in names:
        if name in steps:
            values.setdefault(steps[name].value, name)
    if len(values) > 1:
        raise target_error(
            "megatron-steps",
            "parameters are at different steps",
            notes=[
                *(f"`{name}` is at step {value:g}" for value, name in values.items()),
                "Megatron keeps one step for all of them",
            ],
            helps=["convert to `universal`, which keeps one per parameter"],
        )
    return next(iter(values), None)


def no_weights(name: str, kinds: Iterable[str]) -> ReshardError:
    """The error for a parameter whose weights the source does not store."""
    helps = ["leave `param` among the states that `--states` lists"]
    if MASTER in kinds:
        helps = ["say in which type the model computes, e.g. `--dtype bf16`"]
    return target_error(
        "megatron-weights",
        f"there are no weights of `{name}`",
        notes=[f"the source has {', '.join(f'`{kind}`' for kind in kinds)} of it"],
        helps=helps,
    )
