"""What a verification found, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reshard.errors import MAX_SHOWN, render_all
from reshard.plan.names import group_names
from reshard.plan.text import show_count, show_nbytes, table

if TYPE_CHECKING:
    from reshard.api.comparing import Mismatch
    from reshard.api.verification import Verification


def verification_text(found: Verification) -> str:
    """The answer of `reshard verify`, 80 columns wide."""
    if found.right is None:
        return _one(found)
    if found.ok:
        what = f"{show_count(found.tensors, 'tensor')}, {show_nbytes(found.nbytes)}"
        lines = [f"equal bit for bit: {what}"]
    else:
        lines = [f"different: {len(found.mismatches):,} of {show_count(found.tensors, 'tensor')}"]
    lines += [f"  A  {found.left}", f"  B  {found.right}"]
    for what in ("only in A", "only in B", "shape", "dtype", "values"):
        items = [item for item in found.mismatches if item.what == what]
        if items:
            lines += ["", f"{_TITLES[what]} ({len(items):,})", *_mismatches(items)]
    return "\n".join(lines)


_TITLES = {
    "only in A": "only in A",
    "only in B": "only in B",
    "shape": "other shape",
    "dtype": "other element type",
    "values": "other values",
}


def _one(found: Verification) -> str:
    if found.faults:
        count = show_count(len(found.faults), "fault")
        return f"damaged: {count} in {found.left}\n\n{render_all(found.faults)}"
    files = f"{show_count(found.files, 'file')}, {show_nbytes(found.nbytes)}"
    return (
        f"intact: {found.left}\n"
        f"  {show_count(found.tensors, 'tensor')} in {files}: every byte as it was written"
    )


def _values(item: Mismatch) -> tuple[str, ...]:
    worst = "" if item.max_abs is None else f"{item.max_abs:.3g}"
    counts = (f"{count:,}" for count in (item.numel_different, item.numel, item.first_index))
    return (f"      {item.state}", *counts, worst)


def _mismatches(items: Sequence[Mismatch]) -> list[str]:
    """One line for each family of names that differ alike; values one by one."""
    lines = []
    if items[0].what == "values":
        rows: list[tuple[str, ...]] = [("", "differ", "of", "first", "at most")]
        name = ""
        for item in items[:MAX_SHOWN]:
            if item.name != name:
                name = item.name
                rows.append((f"  {name}", "", "", "", ""))
            rows.append(_values(item))
        lines += table(rows, right="lrrrr")
        if len(items) > MAX_SHOWN:
            lines.append(f"  and {len(items) - MAX_SHOWN:,} more")
        return lines
    alike: dict[tuple[str, str, str], list[str]] = {}
    for item in items:
        alike.setdefault((item.state, item.left, item.right), []).append(item.name)
    merged: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (state, left, right), names in alike.items():
        for pattern, _ in group_names(names):
            merged.setdefault((left, right, (pattern,)), []).append(state)
    shown = list(merged.items())
    for (left, right, (pattern,)), states in shown[:MAX_SHOWN]:
        tail = f": {left} in A, {right} in B" if left else ""
        lines.append(f"  {pattern} ({', '.join(states)}){tail}")
    if len(shown) > MAX_SHOWN:
        lines.append(f"  and {len(shown) - MAX_SHOWN:,} more")
    return lines
