"""Names for people: many parameters of one kind as one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


def group_names(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names that differ in their indices alone, as one pattern each: `layers.{0..47}.norm`, 48.

    Returns: (pattern, how many names) in the order of first appearance.
    """
    return [(pattern, len(members)) for pattern, members in families(names)]


def families(names: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The same patterns, each with its names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_INDEX.sub("\0", name), []).append(name)
    return [
        (_pattern(key, [tuple(map(int, _INDEX.findall(name))) for name in members]), tuple(members))
        for key, members in groups.items()
    ]


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
