"""What the checks find, gathered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from reshard.errors import Diagnostic, Label, Level, ReshardError, Span
from reshard.language import tree


class Faults:
    """Diagnostics of one phase; they come out in the order of the text.

    A layout may be like another one, so that one rule stands in several; what is wrong with it is
    said once, and where it is not its own layout's, with the layout that has it too.
    """

    def __init__(self) -> None:
        self._items: list[Diagnostic] = []
        self._once: dict[tuple[str, str], tuple[int, int]] = {}
        self._places: set[tuple[str, str, int, int]] = set()
        self._layout: tree.LayoutBlock | None = None
        self._layouts: tuple[tree.LayoutBlock, ...] = ()

    def of_layout(self, block: tree.LayoutBlock | None, document: tree.Document) -> None:
        """The layout that is looked at from now on; None for the document as a whole."""
        self._layout, self._layouts = block, document.layouts

    def _inherited(self, at: Span) -> Span | None:
        """The name of the layout that is looked at, where a place is in another one."""
        if self._layout is None or _is_in(at, self._layout):
            return None
        elsewhere = self._layout.span is None or at.source is not self._layout.span.source
        others = any(_is_in(at, block) for block in self._layouts)
        return self._layout.name.span if elsewhere or others else None

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
        if at is not None:
            place_of = code, at.source.name, at.start, at.end
            name = self._inherited(at)
            if name is not None:
                if place_of in self._places:
                    return
                beside = (*beside, (name, "this layout is like it"))
            self._places.add(place_of)
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
        found = Diagnostic(code, headline, level, primary, secondary, tuple(notes), tuple(helps))
        if found not in self._items:  # a rule and that of its bias are one statement
            self._items.append(found)

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


def _is_in(at: Span, block: tree.LayoutBlock) -> bool:
    span = block.span
    return span is not None and at.source is span.source and span.start <= at.start < span.end


def near(word: str, names: Iterable[str]) -> list[str]:
    """A help line with the name that was probably meant, or no line."""
    close = closest(word, names)
    return [] if close is None else [f"did you mean `{close}`?"]


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    found = get_close_matches(word, list(names), n=1)
    return found[0] if found else None
