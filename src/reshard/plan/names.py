"""Names for people: many parameters of one kind as one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


def group_names(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names that differ in their indices alone, as one pattern each: `layers.{0..47}.norm`, 48.

    Returns: (pattern, how many names) in the order of first appearance.
    """
    groups: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        key = _INDEX.sub("\0", name)
        groups.setdefault(key, []).append(tuple(int(text) for text in _INDEX.findall(name)))
    return [(_pattern(key, indices), len(indices)) for key, indices in groups.items()]


def _pattern(key: str, indices: list[tuple[int, ...]]) -> str:
    out = []
    for position, text in enumerate(key.split("\0")):
        if position:
            out.append(_run(sorted({index[position - 1] for index in indices})))
        out.append(text)
    return "".join(out)


def _run(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if values == list(range(values[0], values[-1] + 1)) and len(values) > 2:
        return f"{{{values[0]}..{values[-1]}}}"
    if len(values) <= 4:
        return "{" + ",".join(map(str, values)) + "}"
    return f"{{{values[0]},{values[1]},...,{values[-1]}}}"


def quantity(count: int, noun: str = "tensor") -> str:
    """` (48 tensors)`, or nothing for one."""
    return f" ({count} {noun}s)" if count > 1 else ""
