"""How two checkpoints differ, or the copies within one, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reshard.api.drifting import Drift, Drifts, first_difference
from reshard.api.mismatch_text import mismatch_lines
from reshard.errors import MAX_SHOWN
from reshard.plan.names import families
from reshard.plan.text import WIDTH, show_count, show_nbytes, table, wrap

if TYPE_CHECKING:
    from reshard.api.differing import Diff


def diff_text(found: Diff) -> str:
    """The answer of `reshard diff`, 80 columns wide."""
    if found.drifts is not None:
        return "\n".join(_copies(found, found.drifts))
    what = f"{show_count(found.tensors, 'tensor')}, {show_nbytes(found.nbytes)}"
    if found.same:
        lines = [f"the same bit for bit: {what}"]
    else:
        different = show_count(len(found.mismatches), "difference")
        lines = [f"{different}, and {what} on both sides"]
    lines += [f"  A  {found.left}", f"  B  {found.right}"]
    lines += mismatch_lines(found.mismatches)
    if found.facts:
        lines += ["", f"other values, beside tensors ({len(found.facts):,})"]
        for item in found.facts[:MAX_SHOWN]:
            where = {"not kept": "only in A", "added": "only in B"}.get(item.fate, "other")
            lines += [f"  {line}" for line in wrap(f"{where}: {item}", WIDTH - 2, indent="  ")]
        if len(found.facts) > MAX_SHOWN:
            lines.append(f"  and {len(found.facts) - MAX_SHOWN:,} more")
    return "\n".join(lines)


def _copies(found: Diff, drifts: Drifts) -> list[str]:
    stored = f"{show_count(drifts.copied, 'tensor')} of {found.tensors:,}"
    bad, declared = drifts.undeclared, [item for item in drifts.found if item.is_averaged]
    if not bad:
        lines = [f"copies agree: {found.left}"]
    else:
        lines = [f"copies differ: {show_count(len(bad), 'tensor')} of {found.left}"]
    lines.append(f"  {stored} are stored more than once")
    if bad:
        lines += ["", *_table(bad)]
        lines += ["", *_first(bad[0])]
    if declared:
        lines += ["", "averaged, as the layout says", *_table(declared)]
    return lines


def _first(item: Drift) -> list[str]:
    return [f"  {line}" for line in wrap(first_difference(item), WIDTH - 2, indent="  ")]


def _table(drifts: Sequence[Drift]) -> list[str]:
    named: dict[str, list[tuple[str, ...]]] = {}
    states: dict[str, dict[str, Drift]] = {}
    for item in drifts:
        states.setdefault(item.state, {})[item.name] = item
    for state, members in states.items():
        for pattern, names in families(members):
            items = [members[name] for name in names]
            named.setdefault(pattern, []).append(_row(state, items))
    shown = dict(list(named.items())[:MAX_SHOWN])
    head = ("", "copies", "differ", "of", "max diff", "max ulp")
    rows = [row for found in shown.values() for row in found]
    first, *rest = table([head, *rows], right="lrrrrr")
    lines = [first]
    for pattern, found in shown.items():
        lines += [f"  {pattern}", *rest[: len(found)]]
        rest = rest[len(found) :]
    if len(named) > len(shown):
        lines.append(f"  and {len(named) - len(shown):,} more")
    return lines


def _row(state: str, items: Sequence[Drift]) -> tuple[str, ...]:
    largest = [item.max_abs for item in items if item.max_abs is not None]
    steps = [item.max_ulp for item in items if item.max_ulp is not None]
    return (
        f"      {state}",
        f"{max(item.copies for item in items):,}",
        f"{sum(item.numel_different for item in items):,}",
        f"{sum(item.numel for item in items):,}",
        f"{max(largest):.3g}" if largest else "-",
        f"{max(steps):,}" if steps else "-",
    )
