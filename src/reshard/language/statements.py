"""Where statements and blocks begin and end in a text that may not be UCL."""

from __future__ import annotations

import re
from dataclasses import dataclass

BLOCKS = ("model", "layout")
OF_MODEL = ("axis", "tensor", "let", "include")
OF_LAYOUT = (
    *("mesh", "config", "use", "fix", "place", "stack", "under", "include", "partition", "file"),
    *("tie", "leave", "wrapper", "names", "order"),
)
OF_UNDER = ("under",)
OF_SHARED = ("config", "use")
OF_FILE = (
    *("state", "states", "slices", "number", "named", "order", "run", "fill", "keep", "leave"),
)
KEYWORDS = tuple(dict.fromkeys((*BLOCKS, *OF_MODEL, *OF_LAYOUT, *OF_FILE)))

_MASKED = re.compile(r'"(?:\\.|[^"\\\n])*"?|#[^\n]*')
_START = re.compile(rf'^[ \t\r\f\ufeff]*(?=(?:{"|".join(KEYWORDS)})(?![\w.])|"|\}})', re.M)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement.  masked: the whole text, its strings and comments blanked."""

    start: int
    end: int
    masked: str

    def text(self, text: str) -> str:
        """What it says, without blanks at its ends."""
        return text[self.start : self.end].strip()

    def open_bracket(self, at: int) -> int | None:
        """The last bracket or parenthesis before a place that is not closed there."""
        opened: list[int] = []
        for place in range(self.start, at):
            if self.masked[place] in "[(":
                opened.append(place)
            elif self.masked[place] in "])" and opened:
                opened.pop()
        return opened[-1] if opened else None

    def dimension(self, at: int) -> tuple[int, int]:
        """The outermost dimension of a rule's brackets that a place is in."""
        depth, begin = 0, self.start
        for place in range(self.start, at):
            mark = self.masked[place]
            depth += (mark in "[(") - (mark in "])")
            if depth == 1 and mark in "[,":
                begin = place + 1
        end = at
        while end < self.end:
            mark = self.masked[end]
            if (mark in "])" and depth == 1) or (mark == "," and depth == 1):
                break
            depth += (mark in "[(") - (mark in "])")
            end += 1
        return begin, end


def mask(text: str) -> str:
    """The text with blanks in place of its strings and comments, line ends kept."""
    return _MASKED.sub(lambda found: " " * len(found[0]), text)


def statement_at(text: str, at: int) -> Statement:
    """The statement around a place, as far as lines and braces tell."""
    masked = mask(text)
    start = at
    if text[text.rfind("\n", 0, at) + 1 : at].strip():
        for found in _START.finditer(text, 0, at + 1):
            if found.end() <= at:
                start = found.end()
    start = max(start, masked.rfind("{", 0, at) + 1)
    following = _START.search(text, at + 1)
    end = following.start() if following else len(text)
    indent = start - text.rfind("\n", 0, start) - 1
    for found in re.compile(r"^([ \t]*)[^\s#]", re.M).finditer(text, at + 1, end):
        if len(found[1]) <= indent:  # what goes on on another line is indented deeper
            end = found.start()
            break
    for mark in "{}":
        brace = masked.find(mark, at)
        if 0 <= brace < end:
            end = brace
    return Statement(start, end, masked)


def block_of(masked: str, text: str, at: int) -> tuple[int, str] | None:
    """The innermost block that is open at a place: where its header begins, and what it says."""
    opened: list[int] = []
    for found in re.finditer(r"[{}]", masked[:at]):
        if found[0] == "{":
            opened.append(found.start())
        elif opened:
            opened.pop()
    if not opened:
        return None
    begin = max(masked.rfind(mark, 0, opened[-1]) for mark in "{}\n") + 1
    begin += len(text[begin:]) - len(text[begin:].lstrip())
    return begin, text[begin : opened[-1]].strip()
