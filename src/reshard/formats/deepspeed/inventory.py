"""What of a source goes where in a DeepSpeed checkpoint, and what has no place there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod

from reshard.dtypes import DType
from reshard.errors import Diagnostic, target_error
from reshard.formats import inventory
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.output import FileBytes, Output
from reshard.plan.plan import ArraySpec
from reshard.plan.target import Target
from reshard.run.run import Group
from reshard.run.states import EXTRA, MASTER, PARAM, STEP
from reshard.storage.numbers import Number
from reshard.storage.torch_output import TorchOutput

FP32 = "fp32"
"""DeepSpeed's name for master weights."""
_SHOWN = 4

_FLOATS = (DType.F32, DType.F64)
_DISCRETE = frozenset(
    {DType.BOOL, DType.U8, DType.I8, DType.I16, DType.U16, DType.I32, DType.U32}
    | {DType.I64, DType.U64}
)
"""Types of tensors that no optimizer trains, and that have no master weights."""
_TAG = re.compile(r"[A-Za-z0-9._-]+")


class Inventory(inventory.Inventory):
    """The tensors of a source, sorted for DeepSpeed.

    Attributes:
        trained: names of parameters that the optimizer has, in the order of the source.
        unmanaged: frozen parameters and buffers.
        used_extras: those that an object of the target refers to; empty ones are not placed.
    Raises: ReshardError[numbers-disagree | unreadable-number].
    """

    def __init__(self, arrangement: Arrangement) -> None:
        super().__init__(arrangement)
        catalog, states = arrangement.catalog, self.states
        untrainable = {
            name
            for name, kinds in states.items()
            if all(whole.dtype in _DISCRETE for whole in kinds.values())
        }
        resting = {*catalog.buffers, *catalog.frozen, *untrainable}
        optimized = {name for name, kinds in states.items() if set(kinds) != {PARAM}}
        self.trained = tuple(name for name in states if name in optimized or name not in resting)
        self.unmanaged = tuple(
            states[name][PARAM] for name in states if name not in optimized and name in resting
        )
        self.used_extras: set[str] = set()

    def whole(self, name: str, state: str) -> Whole:
        """One state of one tensor."""
        return self.states[name][state]

    def any_shape(self, name: str) -> tuple[int, ...]:
        """The shape that all states of a tensor have."""
        return next(iter(self.states[name].values())).shape

    def weights_dtype(self) -> DType | None:
        """The element type of most parameters' weights; None where none are stored."""
        kinds = (self.states[name].get(PARAM) for name in self.trained)
        counts = Counter(whole.dtype for whole in kinds if whole is not None)
        return max(counts, key=lambda dtype: counts[dtype], default=None)

    def weights(self, name: str, stored: DType | None, dtype: DType) -> tuple[str, DType]:
        """The state from which weights are written, and as what.

        Weights that are stored stay as they are, but for a run of another precision those in
        which the source computed are rounded from the master weights.

        Args:  stored: what the source computes with.  dtype: what the target computes with.
        """
        kinds = self.states[name]
        if PARAM not in kinds:
            return MASTER, dtype
        stored_dtype = kinds[PARAM].dtype
        if stored_dtype is not stored or stored_dtype is dtype:
            return PARAM, stored_dtype
        if MASTER in kinds:
            self.lose(name, PARAM, f"rounded to {dtype} from the master weights instead")
        return self.master(name), dtype

    def shaped_states(self, name: str) -> dict[str, str]:
        """By DeepSpeed's name of a state, the source's."""
        source = self.master(name)
        others = [state for state in self.states[name] if state not in (MASTER, PARAM)]
        return {FP32: source, **{state: state for state in others}}

    def derive_weights(self, name: str) -> None:
        """Say that weights are not written, because the loader makes them of the master weights."""
        if self.master(name) != PARAM and PARAM in self.states[name]:
            self.lose(name, PARAM, "DeepSpeed makes it of the master weights when it loads")

    def planned(
        self,
        files: TorchOutput,
        latest: tuple[str, str],
        warnings: Iterable[Diagnostic | None],
        *,
        beside: str | None = None,
    ) -> Output:
        """The whole destination.

        Args:  files: all of them were added.  latest: the file that is written last, and its text.
        """
        placed = {item.spec.label for item in files.placed if item.spec.state == EXTRA}
        for name, whole in self.extras.items():
            if name not in placed and not (0 in whole.shape and name in self.used_extras):
                of_rank = name.startswith(("rank.", "optimizer.rank."))
                for_rank = "it belongs to one rank, and the target has other ranks"
                rest = "it is not part of the state that DeepSpeed resumes with"
                self.lose(name, EXTRA, for_rank if of_rank else rest)
        last = FileBytes(latest[0], 0, latest[1].encode())
        return self.output(files, [last], warnings, beside=beside)

    def extra_tensor(self, output: TorchOutput) -> Callable[[str], object]:
        """A function from a tensor's name to the tensor in the output."""

        def tensor(name: str) -> object:
            whole = self.extras[name]
            self.used_extras.add(whole.name)
            return output.tensor(whole_spec(whole, whole.dtype, whole.name))

        return tensor

    def number(self, number: Number, output: TorchOutput) -> object:
        """A number as DeepSpeed keeps it: a tensor if it was one, else an int."""
        whole = number.whole
        if whole.dtype in _FLOATS:
            return output.tensor(whole_spec(whole, whole.dtype, f"{whole.name} {whole.state}"))
        self.fold(whole.name, whole.state, "a plain number")
        return number.value

    def check_numbers(self, groups: Iterable[Group]) -> None:
        """Refuse parameters of one group that are at different steps, or have other numbers.

        Raises: ReshardError[deepspeed-steps].
        """
        for index, group in enumerate(groups):
            for state, numbers in self.numbers.items():
                values: dict[int | float | None, str] = {}
                for name in group.params or ():
                    number = numbers.get(name)
                    values.setdefault(None if number is None else number.value, name)
                if len(values) == 1 or not values:
                    continue
                kept, none, has = f"`{state}`", "none", "has"
                headline = f"parameters of group {index} have different `{state}`"
                if state == STEP:
                    kept, none, has = STEP, "no step", "is at step"
                    headline = f"parameters of group {index} are at different steps"
                notes = [
                    f"`{name}` has {none}" if value is None else f"`{name}` {has} {value:g}"
                    for value, name in list(values.items())[:_SHOWN]
                ]
                raise target_error(
                    "deepspeed-steps",
                    headline,
                    notes=[*notes, f"DeepSpeed keeps one {kept} per param group"],
                    helps=["convert to `universal`, which keeps one per parameter"],
                )


def whole_spec(whole: Whole, dtype: DType, label: str) -> ArraySpec:
    """A whole tensor as an array."""
    return ArraySpec(label, whole.state, dtype, prod(whole.shape), whole.segments, whole.shape)


def find_tag(target: Target, default: str) -> str:
    """The name of the folder inside of the destination.

    Raises: ReshardError[bad-option].
    """
    tag = target.options.get("tag", default)
    if not _TAG.fullmatch(tag) or tag in (".", ".."):
        raise target_error(
            "bad-option",
            f"option `tag` of target `{target.format}` is `{tag}`, which cannot name a folder",
            helps=["use letters, digits, `.`, `_`, and `-`"],
        )
    return tag
