"""Reading on behind a fault: the statement that has it is blanked, so that others are found too."""

from __future__ import annotations

import re

from reshard.errors import Diagnostic
from reshard.language.short_slips import NOT_QUOTED, QUOTED
from reshard.language.slips import NO_BRACE
from reshard.language.statements import BLOCKS, block_of, mask, statement_at

_QUOTED = re.compile(r'"([A-Za-z]\w*)"')
_HEADER = re.compile(rf"(?:{'|'.join(BLOCKS)})\s+[A-Za-z]\w*\s")


def without_fault(text: str, fault: Diagnostic) -> str | None:
    """The text without the statement that a fault is in, as long as it was; None where nothing is
    left to read.
    """
    if fault.primary is None:
        return None
    at = fault.primary.span.start
    if at >= len(text.rstrip()):
        return None
    masked = mask(text)
    if text.startswith(BLOCKS, at) and block_of(masked, text, at) is not None:
        # a block that is not closed before the next one
        gap = at - len(text[:at]) + len(text[:at].rstrip())
        return None if gap == at else f"{text[:gap]}}}{text[gap + 1 :]}"
    if fault.headline == NO_BRACE and text[at : at + 1].isspace():
        return f"{text[:at]}{{{text[at + 1 :]}"
    if fault.headline == NOT_QUOTED and fault.primary.span.end > at + 1:
        length = fault.primary.span.end - at
        return f'{text[:at]}"{" " * (length - 2)}"{text[at + length :]}'
    name = _QUOTED.match(text, at) if fault.headline == QUOTED else None
    if name is not None:
        return f"{text[:at]} {name[1]} {text[name.end() :]}"
    around = statement_at(text, at)
    start, end = around.start, around.end
    header = masked.find("{", start, max(at, start) + 1)
    if block_of(masked, text, at) is None:
        start, end = _outside(text, masked, at)
    elif masked[end : end + 1] == "{" and header < 0:
        start = at  # of the header of a block, only what is wrong
    left = text[:start] + _blank(text[start:end]) + text[end:]
    return None if left == text else left


def _outside(text: str, masked: str, at: int) -> tuple[int, int]:
    """What is not in a block, up to the next brace or block."""
    stops = [masked.find(f"\n{keyword} ", at) for keyword in BLOCKS]
    end = min((stop for stop in stops if stop >= 0), default=len(text))
    brace = masked.find("{", at, end)
    if brace < 0:
        return at, max(end, at + 1)
    line = text.rfind("\n", 0, at) + 1
    if text.startswith(BLOCKS, line):
        if _HEADER.match(text[line:at]):
            return at, brace  # what is wrong in the header of a block
        at = line
    depth, place = 0, brace
    for place in range(brace, len(text)):
        depth += (masked[place] == "{") - (masked[place] == "}")
        if not depth:
            break
    return at, place + 1


def _blank(text: str) -> str:
    return "".join(char if char == "\n" else " " for char in text)
