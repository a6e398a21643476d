"""What a round trip proved, for people: 80 columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reshard.api.comparing import mismatch_lines
from reshard.api.roundtrip_proof import Held, Lost, RoundTrip, WayProof
from reshard.errors import render_all
from reshard.plan.names import group_names
from reshard.plan.report import proved, show_mesh
from reshard.plan.text import WIDTH, facts, show_count, show_nbytes, show_seconds, wrap

_MAX_FACTS = 12
_INNER = re.compile(r"[.]?[$[]")  # where a value of several parts begins
_WRITTEN = "from a temporary folder, because opening this format compares tensors"
_BY_PLAN = (
    "not read back, because reshard cannot read this format: the planned files store every tensor, "
    "but their other contents were not compared"
)


def roundtrip_text(found: RoundTrip) -> str:
    """The answer of `reshard roundtrip`."""
    lines = [f"round trip of {found.path}"]
    states = None if found.states is None else ", ".join(found.states)
    if found.left_out:
        states = f"{states}; not {', '.join(found.left_out)}"
    lines += facts(
        [
            ("source", f"{found.title}, {show_mesh(found.mesh)}"),
            ("layout", _layout(found.source)),
            ("stored", _stored(found.source)),
            ("states", states or "all"),
            ("sample", _sample(found)),
            ("drift", "" if found.drift == "error" else f"resolved by: {found.drift}"),
        ]
    )
    for way in found.ways:
        lines += ["", *_way(way, found.materialized)]
    failed = [way for way in found.ways if not way.ok]
    if failed:
        impossible = sum(way.error is not None for way in failed)
        end = f"failed: {len(failed)} of {_ways(found)}"
        end += f", {impossible} of them not possible" if impossible else ""
    elif any(way.missing for way in found.ways):
        end = f"proved: {_ways(found)}, every tensor that a target stores comes back"
    else:
        of = "" if found.sample is None else " of the sample"
        end = f"proved: {_ways(found)}, every tensor{of} comes back"
    return "\n".join([*lines, "", end, f"  in {show_seconds(found.seconds)}"])


def _ways(found: RoundTrip) -> str:
    return show_count(len(found.ways), "round trip")


def _way(way: WayProof, materialized: bool) -> list[str]:
    if way.error is not None:
        head = "not possible"
    elif way.faults:
        head = "cannot be read back"
    elif way.ok:
        head = "equal bit for bit"
    else:
        bad = len(way.mismatches) + len(way.back)
        parts = [f"{show_count(bad, 'tensor')} different"] if bad else []
        if way.missing and not way.allow_loss:
            parts.append(f"{len(way.missing):,} lost")
        if way.wrong_facts:
            parts.append(f"{show_count(len(way.wrong_facts), 'value')} changed or not kept")
        head = ", ".join(parts)
    lines = wrap(f"via {way.title}: {head}", WIDTH, indent="    ")
    if way.error is not None:
        return [*lines, "", str(way.error)]
    if way.faults:
        return [*lines, "", render_all(way.faults)]
    pairs = []
    for held in way.held:
        pairs.append(("placed", f"every element of {show_count(held.placed, 'tensor')}"))
        pairs.append(("layout", _layout(held)))
        pairs.append(("stored", _stored(held)))
        if not held.is_read:
            pairs.append(("read", _BY_PLAN))
        elif held.is_written and not materialized:
            pairs.append(("read", _WRITTEN))
    how = ", read from disk" if materialized else ""
    back = f"{show_count(way.tensors, 'tensor')}, {show_nbytes(way.nbytes)}{how}"
    pairs.append(("returned", back))
    pairs.append(("rebuilt", _source(way)))
    derived = [item for item in way.lost if item.derived is not None]
    if derived:
        kinds = ", ".join(dict.fromkeys(item.state for item in derived))
        why = f"{kinds} of {show_count(len(derived), 'tensor')} is not stored; every element of it"
        pairs.append(("derived", f"{why} equals the rounded {derived[0].derived}"))
    lines += facts(pairs)
    lines += _lost(way.missing)
    lines += _facts(way)
    if way.mismatches:
        lines += ["", "A is the source, B what came back", *mismatch_lines(way.mismatches)]
    if way.back:
        lines += ["", "A is the source, B the same array rebuilt", *mismatch_lines(way.back)]
    return lines


def _source(way: WayProof) -> str:
    text = f"{show_count(way.places, 'array')} of the source, {show_nbytes(way.places_nbytes)}"
    if way.settled:
        text += f"; not {way.settled:,} whose copies differ (see --on-drift)"
    return text


def _layout(held: Held) -> str:
    return f"{held.layout}: {show_count(held.rules, 'rule')}, one to one"


def _stored(held: Held) -> str:
    return proved(held.proof, copies=True)


def _sample(found: RoundTrip) -> str:
    if found.sample is None:
        return ""
    shown = ", ".join(f"{name} ({state})" for name, state in found.sample[:3])
    more = "" if len(found.sample) <= 3 else ", ..."
    return f"only {show_count(len(found.sample), 'tensor')}: {shown}{more}"


def _lost(lost: Sequence[Lost]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for item in lost:
        groups.setdefault((item.state, item.why), []).append(item.name)
    lines = []
    for (state, why), names in groups.items():
        head = f"lost: {state} of {show_count(len(names), 'tensor')}: {why}"
        lines += [f"  {line}" for line in wrap(head, WIDTH - 2, indent="  ")]
        patterns = group_names(names)
        lines += [f"      {pattern}" for pattern, _ in patterns[:_MAX_FACTS]]
        if len(patterns) > _MAX_FACTS:
            lines.append(f"      and {len(patterns) - _MAX_FACTS:,} more")
    return lines


def _facts(way: WayProof) -> list[str]:
    lines = []
    changed = [item for item in way.facts if item.fate == "changed"]
    for item in changed[:_MAX_FACTS]:
        lines += _fact(f"changed: {item}")
    if len(changed) > _MAX_FACTS:
        lines.append(f"  changed: {len(changed) - _MAX_FACTS:,} more")
    for fate in ("not kept", "added"):
        groups: dict[str, list[str]] = {}
        for item in way.facts:
            if item.fate == fate:
                groups.setdefault(_INNER.split(item.path)[0], []).append(str(item))
        values = [
            items[0] if len(items) == 1 else f"{path} ({len(items):,} values)"
            for path, items in groups.items()
        ]
        if values:
            lines += _fact(f"{fate}: {', '.join(values)}")
    return lines


def _fact(text: str) -> list[str]:
    return [f"  {line}" for line in wrap(text, WIDTH - 2, indent="  ")]
