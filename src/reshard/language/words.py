"""Lists of names as messages print them."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str], joint: str = "and") -> str:
    """Names in backticks: `` `a`, `b`, and `c` ``."""
    return joined([f"`{name}`" for name in names], joint)


def joined(words: list[str], joint: str = "and") -> str:
    """Words with commas between them and a word before the last."""
    if len(words) < 3:
        return f" {joint} ".join(words)
    return f"{', '.join(words[:-1])}, {joint} {words[-1]}"
