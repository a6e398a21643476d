"""How a public value shows itself in Python and in a notebook: in a line, and as its text."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Shown(ABC):
    """A value with a text for people, whose `repr` is one short line of it."""

    __slots__ = ()

    @abstractmethod
    def to_text(self) -> str:
        """For people, 80 columns wide."""

    def summary(self) -> str:
        """The value in a few words: the first line of its text."""
        return self.to_text().partition("\n")[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"

    def _repr_html_(self) -> str:
        """The text, for a notebook."""
        from html import escape

        return f"<pre>{escape(self.to_text())}</pre>"
