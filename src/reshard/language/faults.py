"""What the checks find, gathered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from reshard.errors import Diagnostic, Label, Level, ReshardError, Span


class Faults:
    """Diagnostics of one phase; they come out in the order of the text."""

    def __init__(self) -> None:
        self._items: list[Diagnostic] = []
        self._once: dict[tuple[str, str], tuple[int, int]] = {}

    def add(
        self,
        code: str,
        headline: str,
        at: Span | None,
        label: str = "",
        *,
        beside: Iterable[tuple[Span | None, str]] = (),
        notes: Iterable[str] = (),
        helps: Iterable[str] = (),
        level: Level = "error",
        once: str = "",
    ) -> None:
        """Add one; `beside` are further places that it speaks of.

        Args:  once: what it is about; further faults of the same thing are counted with the first.
        """
        if once and (code, once) in self._once:
            place, count = self._once[code, once]
            self._once[code, once] = place, count + 1
            return
        if once:
            self._once[code, once] = len(self._items), 1
        primary = None if at is None else Label(at, label)
        secondary = tuple(
            Label(span, text) for span, text in beside if span is not None and span != at
        )
        self._items.append(
            Diagnostic(code, headline, level, primary, secondary, tuple(notes), tuple(helps))
        )

    def take(self, error: ReshardError) -> None:
        """Add what an exception carries."""
        self._items += error.diagnostics

    def sorted(self) -> tuple[Diagnostic, ...]:
        """All of them, by place."""
        items = list(self._items)
        for place, count in self._once.values():
            if count > 1:
                more = f"the same in {count - 1} more place{'s' * (count > 2)}"
                items[place] = replace(items[place], notes=(*items[place].notes, more))
        return tuple(sorted(items, key=lambda item: item.primary.span.start if item.primary else 0))


def near(word: str, names: Iterable[str]) -> list[str]:
    """A help line with the name that was probably meant, or no line."""
    close = closest(word, names)
    return [] if close is None else [f"did you mean `{close}`?"]


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    found = get_close_matches(word, list(names), n=1)
    return found[0] if found else None
