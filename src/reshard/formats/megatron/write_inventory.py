"""What of a source goes where in a Megatron checkpoint, and what has no place there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from reshard.dtypes import DType
from reshard.errors import ReshardError, target_error
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.build import has_remainders
from reshard.run.states import EXTRA, MASTER, PARAM, STEP, WEIGHTS
from reshard.storage.numbers import Number, read_numbers

HALVES = (DType.BF16, DType.F16)


@dataclass(slots=True)
class Inventory:
    """The tensors of a source, sorted.

    Args:  states: by name, the shaped states of a tensor, by kind.
           resting: names of what the optimizer does not have: buffers and frozen parameters.
           steps: by name of a parameter.
           remainders: names of bf16 weights of whose masters the source stores the lower halves.
           lost: by name and state, why it has no place.
           folded: by name and state, as part of what it is written.
    """

    states: Mapping[str, Mapping[str, Whole]]
    resting: frozenset[str]
    steps: Mapping[str, Number]
    remainders: frozenset[str] = frozenset()
    lost: dict[tuple[str, str], str] = field(default_factory=dict)
    folded: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        """Whether there are states of an optimizer."""
        return any(self.own_states(name) for name in self.states)

    def own_states(self, name: str) -> dict[str, Whole]:
        """The states that an optimizer keeps of a parameter besides its weights."""
        return {kind: whole for kind, whole in self.states[name].items() if kind not in WEIGHTS}

    def weights(self, name: str) -> tuple[str, DType]:
        """The state from which weights are written, and as what.

        Raises: ReshardError[megatron-weights].
        """
        kinds = self.states[name]
        if PARAM in kinds:
            return PARAM, kinds[PARAM].dtype
        raise _no_weights(name, kinds)

    def main_dtype(self) -> DType:
        """The type of most weights."""
        counts: dict[DType, int] = {}
        for name, kinds in self.states.items():
            dtype = self.weights(name)[1]
            counts[dtype] = counts.get(dtype, 0) + prod(next(iter(kinds.values())).shape)
        return max(counts, key=lambda dtype: counts[dtype])

    def is_half(self, name: str) -> bool:
        """Whether the optimizer keeps a master of a parameter's weights."""
        return self.weights(name)[1] in HALVES

    def master(self, name: str) -> str:
        """The state that holds the weights of most bits."""
        return MASTER if MASTER in self.states[name] else PARAM

    def keeps_remainders(self, args: Mapping[str, object]) -> bool:
        """Whether the optimizer of a run with these arguments, the source's, keeps its masters as
        lower halves, as the source has them.
        """
        return (
            args.get("use_precision_aware_optimizer") is True
            and bool(self.remainders)
            and all(
                name in self.remainders
                for name in self.states
                if name not in self.resting and self.weights(name)[1] is DType.BF16
            )
        )

    def lose(self, name: str, state: str, why: str) -> None:
        """Say that a tensor has no place in the target."""
        self.lost.setdefault((name, state), why)

    def fold(self, name: str, state: str, how: str) -> None:
        """Say that a tensor is in the target, but not as an array of its own."""
        self.folded.setdefault((name, state), how)

    def step(self, names: Iterable[str]) -> int | float | None:
        """The one step that parameters are at; None where no step is stored.

        Raises: ReshardError[megatron-steps].
        """
        values: dict[int | float, str] = {}
        for name in names:
            if name in self.steps:
                values.setdefault(self.steps[name].value, name)
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
        why = "Megatron resumes no optimizer without its param groups"
        for name, kinds in self.states.items():
            weights = self.weights(name)[0]
            for state in kinds:
                if state != weights:
                    self.lose(name, state, why)
        for name in self.steps:
            self.lose(name, STEP, why)

    def dropped(self) -> tuple[tuple[str, str, str], ...]:
        """Everything that has no place in the target."""
        return tuple((name, state, why) for (name, state), why in self.lost.items())

    def folded_tensors(self) -> tuple[tuple[str, str, str], ...]:
        """Everything that is written as part of something else."""
        return tuple((name, state, how) for (name, state), how in self.folded.items())


def take_inventory(arrangement: Arrangement) -> Inventory:
    """Sort the tensors of a source.

    Raises: ReshardError[numbers-disagree | unreadable-number].
    """
    catalog = arrangement.catalog
    states: dict[str, dict[str, Whole]] = {}
    steps: list[Whole] = []
    lost: dict[tuple[str, str], str] = {}
    for whole in arrangement.wholes:
        if whole.state == EXTRA:
            lost[whole.name, EXTRA] = "state of one rank alone, which Megatron makes anew"
        elif whole.state == STEP:
            steps.append(whole)
        elif whole.rule < 0:
            lost[whole.name, whole.state] = "one number per parameter, for which there is no place"
        else:
            states.setdefault(whole.name, {})[whole.state] = whole
    resting = {*catalog.buffers, *catalog.frozen, *(n for n in states if n.endswith("expert_bias"))}
    idle = frozenset(name for name in resting if name in states and set(states[name]) == {PARAM})
    lower = frozenset(
        name
        for name, kinds in states.items()
        if PARAM in kinds
        and kinds[PARAM].dtype is DType.BF16
        and has_remainders(arrangement, [key for key, _ in kinds[PARAM].segments])
    )
    return Inventory(states, idle, read_numbers(arrangement, steps), lower, lost)


def _no_weights(name: str, kinds: Mapping[str, Whole]) -> ReshardError:
    text = ", ".join(f"`{kind}`" for kind in kinds)
    helps = ["leave `param` among the states that `--states` lists"]
    if MASTER in kinds:
        helps = ["say in which type the model computes, e.g. `--dtype bf16`"]
    return target_error(
        "megatron-weights",
        f"there are no weights of `{name}`",
        notes=[f"the source has {text} of it"],
        helps=helps,
    )
