"""Tensors that differ, for people: grouped by names, with the first element of each group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reshard.api.comparing import Mismatch
from reshard.errors import MAX_SHOWN
from reshard.plan.names import families, group_names
from reshard.plan.text import WIDTH, table, wrap

TITLES = {
    "only in A": "only in A",
    "only in B": "only in B",
    "shape": "other shape",
    "dtype": "other element type",
    "values": "other values",
}


def mismatch_lines(mismatches: Sequence[Mismatch]) -> list[str]:
    """A section for each way to differ, a blank line before it."""
    lines = []
    for what, title in TITLES.items():
        items = [item for item in mismatches if item.what == what]
        if items:
            lines += ["", f"{title} ({len(items):,})"]
            lines += _values(items) if what == "values" else _alike(items)
    return lines


def first_lines(item: Mismatch) -> list[str]:
    """The first element that differs: where it is, and both values with their places."""
    if item.a is None or item.b is None:
        return []
    at = f"first at {list(item.index)} of {item.label} ({item.state})"
    out = [f"  {line}" for line in wrap(at, WIDTH - 2, indent="  ")]
    for side, element in (("A", item.a), ("B", item.b)):
        head, *rest = wrap(str(element), WIDTH - 7)
        out += [f"    {side}  {head}", *(f"       {line}" for line in rest)]
    return out


def _values(items: Sequence[Mismatch]) -> list[str]:
    """One row for each family of names and state, then the first element of all."""
    states: dict[str, list[Mismatch]] = {}
    for item in items:
        states.setdefault(item.state, []).append(item)
    named: dict[str, list[tuple[str, ...]]] = {}
    for state, members in states.items():
        by_name: dict[str, list[Mismatch]] = {}
        for item in members:
            by_name.setdefault(item.label, []).append(item)
        for pattern, names in families(by_name):
            found = [item for name in names for item in by_name[name]]
            named.setdefault(pattern, []).append(_row(state, found))
    shown = dict(list(named.items())[:MAX_SHOWN])
    head = ("", "differ", "of", "max diff", "max ulp")
    first, *rows = table([head, *(row for rows in shown.values() for row in rows)], right="lrrrr")
    lines = [first]
    for pattern, found_rows in shown.items():
        lines.append(f"  {pattern}")
        lines += rows[: len(found_rows)]
        rows = rows[len(found_rows) :]
    if len(named) > len(shown):
        lines.append(f"  and {len(named) - len(shown):,} more")
    return [*lines, "", *first_lines(items[0])]


def _row(state: str, items: Sequence[Mismatch]) -> tuple[str, ...]:
    largest = [item.max_abs for item in items if item.max_abs is not None]
    steps = [item.max_ulp for item in items if item.max_ulp is not None]
    return (
        f"      {state}",
        f"{sum(item.numel_different for item in items):,}",
        f"{sum(item.numel for item in items):,}",
        f"{max(largest):.3g}" if largest else "-",
        f"{max(steps):,}" if steps else "-",
    )


def _alike(items: Iterable[Mismatch]) -> list[str]:
    """One line for each family of names that differ alike."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for item in items:
        alike.setdefault((item.state, item.left, item.right), []).append(item.label)
    merged: dict[tuple[str, str, str], list[str]] = {}
    for (state, left, right), names in alike.items():
        for pattern, _ in group_names(names):
            merged.setdefault((left, right, pattern), []).append(state)
    lines = []
    shown = list(merged.items())
    for (left, right, pattern), states in shown[:MAX_SHOWN]:
        tail = f": {left} in A, {right} in B" if left else ""
        lines.append(f"  {pattern} ({', '.join(states)}){tail}")
    if len(shown) > MAX_SHOWN:
        lines.append(f"  and {len(shown) - MAX_SHOWN:,} more")
    return lines
