"""What of a source goes where in a target that holds a run, and what has no place there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reshard.errors import Diagnostic
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.output import FileBytes, Output, Written
from reshard.run.states import EXTRA, MASTER, PARAM, WEIGHTS
from reshard.storage.numbers import Number, read_numbers
from reshard.storage.torch_output import TorchOutput


class Inventory:
    """The tensors of a source, sorted.

    Attributes:
        states: by name, the shaped states of a tensor, by kind.
        numbers: by state (`step` and its kind) and name of a parameter.
        extras: tensors of no parameter, by name.
    Raises: ReshardError[numbers-disagree | unreadable-number].
    """

    def __init__(self, arrangement: Arrangement) -> None:
        self.states: dict[str, dict[str, Whole]] = {}
        self.extras: dict[str, Whole] = {}
        numbers: dict[str, list[Whole]] = {}
        for whole in arrangement.wholes:
            if whole.state == EXTRA:
                self.extras[whole.name] = whole
            elif whole.rule < 0:
                numbers.setdefault(whole.state, []).append(whole)
            else:
                self.states.setdefault(whole.name, {})[whole.state] = whole
        self.numbers: Mapping[str, Mapping[str, Number]] = {
            state: read_numbers(arrangement, wholes) for state, wholes in numbers.items()
        }
        self._lost: dict[tuple[str, str], str] = {}
        self._folded: dict[tuple[str, str], str] = {}
        self._makes_weights = False

    def optimizer_states(self, name: str) -> dict[str, Whole]:
        """The states of a parameter besides its weights."""
        return {kind: whole for kind, whole in self.states[name].items() if kind not in WEIGHTS}

    def master(self, name: str) -> str:
        """The state that holds the weights of most bits."""
        return MASTER if MASTER in self.states[name] else PARAM

    def lose(self, name: str, state: str, why: str) -> None:
        """Say that a tensor has no place in the target."""
        self._lost.setdefault((name, state), why)

    def fold(self, name: str, state: str, how: str) -> None:
        """Say that a tensor is in the target, but not as an array of its own."""
        self._folded.setdefault((name, state), how)

    def make_weights(self, name: str) -> None:
        """Say that the weights of a parameter are written, whether they are stored or not."""
        if MASTER in self.states[name] and PARAM not in self.states[name]:
            self._makes_weights = True

    def output(
        self,
        files: TorchOutput,
        last: Sequence[FileBytes],
        warnings: Iterable[Diagnostic | None],
        *,
        beside: str | None = None,
    ) -> Output:
        """The whole destination.

        Args:  files: all of them were added.  last: files that are written behind them, in order.
        """

        def finish(written: Sequence[Written]) -> tuple[FileBytes, ...]:
            return (*files.finish(written), *last)

        return Output(
            tuple(files.placed),
            files.files,
            tuple(files.head),
            finish,
            tuple(item for item in warnings if item is not None),
            tuple((name, state, why) for (name, state), why in self._lost.items()),
            tuple((name, state, how) for (name, state), how in self._folded.items()),
            beside,
            makes_weights=self._makes_weights,
        )
