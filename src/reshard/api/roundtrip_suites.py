"""What a round trip proved, as test cases: one for each way and kind of state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reshard.api.comparing import Mismatch
from reshard.api.junit import Case, Suite
from reshard.api.mismatch_text import mismatch_lines
from reshard.api.roundtrip_proof import Lost, RoundTrip, WayProof
from reshard.errors import render_all

TARGET = "target"
READ_BACK = "read back"
VALUES = "training state"


def case_names(states: Iterable[str]) -> tuple[str, ...]:
    """The test cases of one way."""
    return (READ_BACK, *states, VALUES)


def case_failure(way: WayProof, case: str) -> tuple[str, str] | None:
    """Why a test case fails: a headline, and everything else; None if it does not."""
    if way.faults:
        if case != READ_BACK:
            return f"{way.title} could not be read back", ""
        return way.faults[0].headline, render_all(way.faults)
    if case == READ_BACK:
        return None
    if case == VALUES:
        wrong = [f"{item.fate}: {item}" for item in way.wrong_facts]
        return (f"{len(wrong)} values changed or not kept", "\n".join(wrong)) if wrong else None
    found = way.failures(case)
    if not found:
        return None
    different = [item for item in found if isinstance(item, Mismatch)]
    lost = [item for item in found if isinstance(item, Lost)]
    parts = [f"{len(different)} of {case} differ"] if different else []
    parts += [f"{len(lost)} of {case} are lost"] if lost else []
    lines = [f"{item.name} ({item.state}) is lost: {item.why}" for item in lost]
    return ", ".join(parts), "\n".join([*lines, *mismatch_lines(different)]).strip("\n")


def roundtrip_suites(found: RoundTrip) -> tuple[Suite, ...]:
    """A suite for each way; one that could not be tried has a single case, its target."""
    return tuple(
        Suite(f"via {way.title}", found.path, tuple(_cases(way)), way.seconds) for way in found.ways
    )


def _cases(way: WayProof) -> Iterator[Case]:
    if way.error is not None:
        yield Case(TARGET, error=way.error)
        return
    for case in case_names(_states(way)):
        yield Case(case, case_failure(way, case))


def _states(way: WayProof) -> tuple[str, ...]:
    """Every kind of state of a way, whether it came back or not."""
    states = [item.state for item in way.states]
    states += [item.state for item in (*way.mismatches, *way.back)]
    states += [item.state for item in way.lost]
    return tuple(dict.fromkeys(states))
