"""Which kinds of state the user asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from reshard.api.source import OpenedSource
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.kept_states import without_kept_states
from reshard.run.states import EXTRA, MASTER, PARAM

WEIGHTS = (PARAM,)
"""State kinds that `weights` stands for."""

MASTERS = (MASTER,)
"""State kinds that it stands for where a run keeps its weights in no other form (ZeRO-3)."""


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

    Args:  states: `all`, `weights`, a list with commas between, or the kinds themselves.
    Raises: ReshardError[unknown-state], and why the source withholds states that are asked for.
    """
    arrangement = source.arrangement
    items = states.split(",") if isinstance(states, str) else list(states)
    wanted = [item.strip() for item in items]
    stored = dict.fromkeys(whole.state for whole in arrangement.wholes)
    if source.catalog.withheld and not {*wanted} <= {"weights", *WEIGHTS}:
        raise ReshardError(source.catalog.withheld, Exit.SOURCE)
    if wanted == ["all"]:
        return Selected(arrangement, None, ())
    weights = WEIGHTS if PARAM in stored or MASTER not in stored else MASTERS
    kinds = {kind for item in wanted for kind in (weights if item == "weights" else (item,))}
    unknown = [kind for kind in dict.fromkeys(wanted) if kind in kinds and kind not in stored]
    if "weights" in wanted:
        unknown += [kind for kind in weights if kind not in stored and kind not in unknown]
    if unknown:
        path = str(source.path)
        raise ReshardError([_unknown(kind, stored, path) for kind in unknown], Exit.USAGE)
    kinds.add(EXTRA)
    asked = without_kept_states(arrangement)
    wholes = tuple(whole for whole in asked.wholes if whole.state in kinds)
    parts = {key: parts for key, parts in asked.parts.items() if key[1] in kinds}
    names = {(whole.name, whole.state) for whole in wholes}
    left_out = tuple(w for w in arrangement.wholes if (w.name, w.state) not in names)
    return Selected(
        replace(asked, wholes=wholes, parts=parts), tuple(sorted(kinds - {EXTRA})), left_out
    )


def _unknown(kind: str, stored: Collection[str], path: str) -> Diagnostic:
    near = get_close_matches(kind, stored, 1)
    listed = ", ".join(f"`{name}`" for name in stored)
    return Diagnostic(
        "unknown-state",
        f"the source stores no state `{kind}`",
        notes=(f"it stores {listed}", f"source: {path}"),
        helps=(f"did you mean `{near[0]}`?",) if near else (),
    )
