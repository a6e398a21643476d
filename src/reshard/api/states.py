"""Which kinds of state the user asks for, and in which element types."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from reshard.api.source import OpenedSource
from reshard.dtypes import DType
from reshard.errors import Diagnostic, Exit, ReshardError, target_error
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.kept_states import without_kept_states
from reshard.run.states import EXTRA, MASTER, PARAM

NAMES: Mapping[str, DType] = {
    "fp32": DType.F32,
    "float32": DType.F32,
    "bf16": DType.BF16,
    "bfloat16": DType.BF16,
    "fp16": DType.F16,
    "float16": DType.F16,
    "fp64": DType.F64,
    "float64": DType.F64,
    "fp8_e4m3": DType.F8_E4M3,
    "fp8_e5m2": DType.F8_E5M2,
}
"""What users call the types that weights are rounded to."""


def parse_dtypes(text: str | None) -> dict[str, DType]:
    """`bf16` for the weights, or `param=bf16,exp_avg=fp32`; by state kind.

    Raises: ReshardError[bad-dtype].
    """
    out: dict[str, DType] = {}
    for item in text.split(",") if text else ():
        state, equals, name = item.strip().rpartition("=")
        state = state.strip() if equals else PARAM
        if not state or state in out:
            why = "gives a state twice" if state else "names no state"
            raise _bad(text or "", f"`{item}` {why}")
        dtype = NAMES.get(name.strip().lower())
        if dtype is None:
            raise _unknown(name.strip())
        out[state] = dtype
    return out


def _bad(text: str, why: str) -> ReshardError:
    return target_error(
        "bad-dtype",
        f"`--dtype {text}` cannot be read: {why}",
        helps=["write `bf16` for the weights, or `param=bf16,exp_avg=fp32`"],
    )


def _unknown(name: str) -> ReshardError:
    near = get_close_matches(name.lower(), NAMES, 1)
    return target_error(
        "bad-dtype",
        f"there is no element type `{name}`",
        notes=["it can be `fp64`, `fp32`, `fp16`, `bf16`, `fp8_e4m3`, or `fp8_e5m2`"],
        helps=[f"did you mean `{near[0]}`?"] if near else [],
    )


@dataclass(frozen=True, slots=True)
class Selected:
    """The part of a source that was asked for.

    Args:  kinds: of state; None for all.  left_out: every other tensor, in the order of the source.
    """

    arrangement: Arrangement
    kinds: tuple[str, ...] | None
    left_out: tuple[Whole, ...]


def select_states(source: OpenedSource, states: str | Iterable[str]) -> Selected:
    """A source with only some kinds of state; tensors that belong to no parameter are kept.

    States of the optimizer that are kept as found have no kind, so that they are not asked for.
    The weight of a parameter that is stored in no other form (ZeRO-3) is its master.

    Args:  states: `all`, `weights`, a list with commas between, or the kinds themselves.
    Raises: ReshardError[unknown-state], and why the source withholds states that are asked for.
    """
    arrangement = source.arrangement
    items = states.split(",") if isinstance(states, str) else list(states)
    asked_for = [item.strip() for item in items]
    states_of = dict.fromkeys(whole.state for whole in arrangement.wholes)
    if source.catalog.withheld and not {*asked_for} <= {"weights", PARAM}:
        raise ReshardError(source.catalog.withheld, Exit.SOURCE)
    if asked_for == ["all"]:
        return Selected(arrangement, None, ())
    kinds = {*asked_for} - {"weights"}
    weights = _weights(arrangement) if "weights" in asked_for else set()
    unknown = [kind for kind in dict.fromkeys(asked_for) if kind in kinds and kind not in states_of]
    if "weights" in asked_for and not weights:
        unknown.append(PARAM)
    if unknown:
        path = str(source.path)
        raise ReshardError([_not_stored(kind, states_of, path) for kind in unknown], Exit.USAGE)
    kinds.add(EXTRA)
    named = without_kept_states(arrangement)
    wholes = tuple(w for w in named.wholes if w.state in kinds or (w.name, w.state) in weights)
    kinds |= {state for _, state in weights}
    parts = {key: parts for key, parts in named.parts.items() if key[1] in kinds}
    names = {(whole.name, whole.state) for whole in wholes}
    left_out = tuple(w for w in arrangement.wholes if (w.name, w.state) not in names)
    return Selected(
        replace(named, wholes=wholes, parts=parts), tuple(sorted(kinds - {EXTRA})), left_out
    )


def _weights(arrangement: Arrangement) -> set[tuple[str, str]]:
    """Name and state of the weight of each parameter."""
    kinds: dict[str, str] = {}
    for whole in arrangement.wholes:
        if whole.state == PARAM or whole.state == MASTER:
            kinds[whole.name] = PARAM if whole.state == PARAM else kinds.get(whole.name, MASTER)
    return set(kinds.items())


def _not_stored(kind: str, states: Collection[str], path: str) -> Diagnostic:
    near = get_close_matches(kind, states, 1)
    names = ", ".join(f"`{name}`" for name in states)
    return Diagnostic(
        "unknown-state",
        f"the source stores no state `{kind}`",
        notes=(f"it stores {names}", f"source: {path}"),
        helps=(f"did you mean `{near[0]}`?",) if near else (),
    )
