"""Regular expressions that are compiled when something is first matched: most never are."""

from __future__ import annotations

import re


class LazyRegex:
    """A regular expression over whole texts, in which `.` is any character."""

    __slots__ = ("_compiled", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._compiled: re.Pattern[str] | None = None

    def groups(self, text: str) -> tuple[str, ...] | None:
        """What the groups take of a whole text; None if it does not match."""
        if self._compiled is None:
            self._compiled = re.compile(self._text, re.DOTALL)
        found = self._compiled.fullmatch(text)
        return None if found is None else found.groups()
