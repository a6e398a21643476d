"""What a round trip proved, as JUnit XML: one test case for each way and kind of state."""

from __future__ import annotations

from collections.abc import Iterable

from reshard.api.comparing import Mismatch
from reshard.api.mismatch_text import mismatch_lines
from reshard.api.roundtrip_proof import Lost, RoundTrip, WayProof
from reshard.errors import render_all

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


def roundtrip_junit(found: RoundTrip) -> str:
    """The whole document."""
    from xml.sax.saxutils import escape, quoteattr  # it imports what speaks to the network

    out = ['<?xml version="1.0" encoding="utf-8"?>']
    total, failures = 0, 0
    suites = []
    for way in found.ways:
        cases = []
        failed = 0
        for case in case_names(_states(way)):
            failure = case_failure(way, case)
            head = f"<testcase classname={quoteattr(found.path)} name={quoteattr(case)}"
            if failure is None:
                cases.append(f"    {head}/>")
                continue
            failed += 1
            cases += [
                f"    {head}>",
                f"      <failure message={quoteattr(_clean(failure[0]))}>"
                f"{escape(_clean(failure[1]))}</failure>",
                "    </testcase>",
            ]
        counts = f'tests="{len(case_names(_states(way)))}" failures="{failed}" errors="0"'
        suites += [f"  <testsuite name={quoteattr(f'via {way.title}')} {counts}>", *cases]
        suites.append("  </testsuite>")
        total += len(case_names(_states(way)))
        failures += failed
    out.append(
        f'<testsuites name="reshard roundtrip" tests="{total}" failures="{failures}" errors="0">'
    )
    return "\n".join([*out, *suites, "</testsuites>", ""])


def _states(way: WayProof) -> tuple[str, ...]:
    """Every kind of state of a way, whether it came back or not."""
    states = [item.state for item in way.states]
    states += [item.state for item in (*way.mismatches, *way.back)]
    states += [item.state for item in way.lost]
    return tuple(dict.fromkeys(states))


def _clean(text: str) -> str:
    """Without the characters that XML has no form for."""
    return "".join(char for char in text if char in "\n\t" or char >= " ")
