"""Names for people: many parameters of one kind as one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from reshard.errors import visible

_INDEX = re.compile(r"(?<![^.])([0-9]{1,18})(?![^.])")


def group_names(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names that differ in their indices alone, as one pattern each: `layers.{0..47}.norm`, 48.

    Returns: (pattern, how many names) in the order of first appearance.
    """
    return [(visible(pattern), len(members)) for pattern, members in families(names)]


def families(names: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The same patterns, each with its names."""
    groups: dict[tuple[str, ...], list[tuple[str, tuple[int, ...]]]] = {}
    for name in names:
        parts = _INDEX.split(name)
        groups.setdefault(tuple(parts[::2]), []).append((name, tuple(map(int, parts[1::2]))))
    return [
        (_pattern(texts, [indices for _, indices in members]), tuple(name for name, _ in members))
        for texts, members in groups.items()
    ]


def _pattern(texts: tuple[str, ...], indices: list[tuple[int, ...]]) -> str:
    out = [texts[0]]
    for position, text in enumerate(texts[1:]):
        out += (_run(sorted({index[position] for index in indices})), text)
    return "".join(out)


def _run(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if values[-1] - values[0] + 1 == len(values) > 2:
        return f"{{{values[0]}..{values[-1]}}}"
    if len(values) <= 4:
        return "{" + ",".join(map(str, values)) + "}"
    return f"{{{values[0]},{values[1]},...,{values[-1]}}}"


def quantity(count: int, noun: str = "tensor") -> str:
    """` (48 tensors)`, or nothing for one."""
    return f" ({count} {noun}s)" if count > 1 else ""


def listed_kinds(names: Iterable[str]) -> list[str]:
    """The same patterns in quotes, each with how many names it has."""
    return [f"`{pattern}`{quantity(count)}" for pattern, count in group_names(names)]


def some(items: Iterable[str], most: int = 6) -> str:
    """The first few of many, for messages: `a, b, and 3 more`."""
    listed = list(items)
    more = f", and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def name_pattern(text: str) -> re.Pattern[str]:
    """What names follow a pattern of the user's; a `*` stands for any characters."""
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)
