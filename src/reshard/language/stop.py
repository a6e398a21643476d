"""Where reading a text stopped, and the slip that somebody made there."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reshard.language.statements import Statement


@dataclass(frozen=True, slots=True)
class Slip:
    """One slip.  span: of what is wrong, where that is not the word at which reading stopped."""

    headline: str
    label: str
    help: str
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Where reading a text stopped.

    Args:  word: what stands there.  accepted: the terminals that could have.
           statement: that it is in.  before: where what was understood ends.
    """

    text: str
    at: int
    word: str
    accepted: frozenset[str]
    statement: Statement
    before: int

    @property
    def keyword(self) -> str:
        """The first word of the statement; a quote for a rule."""
        found = re.match(r'"|\w+', self.text[self.statement.start :].lstrip())
        return found[0] if found else ""

    @property
    def is_first(self) -> bool:
        """Whether the word is the first of its line."""
        return not self.text[self.text.rfind("\n", 0, self.at) + 1 : self.at].strip()

    @property
    def is_expression(self) -> bool:
        """Whether an expression could go on here."""
        return "COMPARE" in self.accepted or "STAR" in self.accepted
