"""Other element types for some states, said explicitly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from reshard.dtypes import DType
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.plan.arrangement import Arrangement, Whole
from reshard.run.states import EXTRA, MASTER, PARAM

FLOATS = frozenset(
    {
        DType.F8_E4M3,
        DType.F8_E5M2,
        DType.F8_E4M3FNUZ,
        DType.F8_E5M2FNUZ,
        DType.F16,
        DType.BF16,
        DType.F32,
        DType.F64,
    }
)
"""Types that are rounded into each other."""


def recast(arrangement: Arrangement, dtypes: Mapping[str, DType]) -> Arrangement:
    """The arrangement with some states in other element types; integers and the like stay.

    Weights (`param`) are taken from the master weights where there are some, so that they are
    rounded once.

    Args:  dtypes: by state kind.
    Raises: ReshardError[unknown-state].
    """
    stored = {whole.state for whole in arrangement.wholes}
    for state in dtypes:
        if state not in stored and not (state == PARAM and MASTER in stored):
            raise _no_state(state, dtypes[state], sorted(stored - {EXTRA}))
    if PARAM in dtypes:
        arrangement = _weights_of_masters(arrangement, dtypes[PARAM])
    wholes = tuple(
        replace(whole, dtype=dtypes[whole.state])
        if whole.state in dtypes and whole.rule >= 0 and whole.dtype in FLOATS
        else whole
        for whole in arrangement.wholes
    )
    return replace(arrangement, wholes=wholes)


def _weights_of_masters(arrangement: Arrangement, dtype: DType) -> Arrangement:
    """Weights that would be rounded are those of the master weights."""
    own = {whole.name: whole for whole in arrangement.wholes if whole.state == PARAM}
    parts = dict(arrangement.parts)
    wholes: list[Whole] = []
    made: dict[str, Whole] = {}
    for whole in arrangement.wholes:
        if whole.state == MASTER and whole.rule >= 0:
            kept = own.get(whole.name)
            if kept is None or (kept.dtype in FLOATS and kept.dtype != dtype):
                made[whole.name] = replace(whole, state=PARAM)
                for key, _ in whole.segments:
                    parts[key, PARAM] = arrangement.parts[key, MASTER]
    for whole in arrangement.wholes:
        if whole.state == MASTER and whole.name in made and whole.name not in own:
            wholes.append(made[whole.name])
        wholes.append(made[whole.name] if whole.state == PARAM and whole.name in made else whole)
    return replace(arrangement, wholes=tuple(wholes), parts=parts)


def _no_state(state: str, dtype: DType, stored: Sequence[str]) -> ReshardError:
    near = get_close_matches(state, stored, 1)
    return ReshardError(
        Diagnostic(
            "unknown-state",
            f"the source stores no state `{state}` that could become {dtype}",
            notes=(f"it stores {', '.join(f'`{item}`' for item in stored)}",),
            helps=(f"did you mean `{near[0]}`?",) if near else (),
        ),
        Exit.USAGE,
    )
