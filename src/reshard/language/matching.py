"""Matches patterns in time that grows with name times pattern, whatever the two are.

A regular expression with several wildcards tries every way to share a name out among them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["MAX_WILD", "match_runs", "simple_length"]

MAX_WILD = 16
"""Wildcards and indices of one pattern."""

_SIMPLE_NAME = 2_000
_INDEX = re.compile("0|[1-9][0-9]{0,17}")

Part = str | None | bool
"""Of a pattern: literal text; None for an index; a wildcard is True if it takes dots too."""


def simple_length(parts: Sequence[Part]) -> int:
    """Up to which length of a name a regular expression has few ways to try; -1 if for none.

    It has with one wildcard, and with indices that end where they must.
    """
    for part, after in pairwise(parts):
        if part is None and (not isinstance(after, str) or after[:1].isdigit()):
            return -1
    wild = sum(isinstance(part, bool) for part in parts)
    return sys.maxsize if wild < 2 else _SIMPLE_NAME if wild == 2 else -1


def match_runs(parts: Sequence[Part], name: str) -> tuple[str, ...] | None:
    """What the wildcards and the indices take of a name, in order; None if it does not match.

    The first wildcard takes as little as it can, then the second, and so on; an index takes as many
    digits as it can, and all that there are where it stands beside a wildcard.
    """
    size = len(name)
    ends = bytearray(size + 1)
    ends[size] = 1
    reach = [ends]  # per part, from which positions on the rest of the pattern matches
    for place in range(len(parts) - 1, -1, -1):
        reach.append(_starts(parts, place, name, reach[-1]))
    reach.reverse()
    if not reach[0][0]:
        return None
    runs, at = [], 0
    for place, part in enumerate(parts):
        if isinstance(part, str):
            at += len(part)
            continue
        stop = _stop(parts, place, name, at, reach[place + 1])
        runs.append(name[at:stop])
        at = stop
    return tuple(runs)


def _starts(parts: Sequence[Part], place: int, name: str, after: bytearray) -> bytearray:
    """From which positions on a part and what follows it match."""
    part, size = parts[place], len(name)
    out = bytearray(size + 1)
    if isinstance(part, bool):
        open_end = 0
        for at in range(size, -1, -1):
            if after[at]:
                open_end = 1
            elif not part and at < size and name[at] == ".":
                open_end = 0
            out[at] = open_end
    elif part is None:
        for at in range(size):
            out[at] = any(after[stop] for stop in _index_stops(parts, place, name, at))
    else:
        at = name.find(part)
        while at >= 0:
            out[at] = after[at + len(part)]
            at = name.find(part, at + 1)
    return out


def _stop(parts: Sequence[Part], place: int, name: str, at: int, after: bytearray) -> int:
    """Where a wildcard or an index that begins at a position ends."""
    if parts[place] is None:
        return next(stop for stop in _index_stops(parts, place, name, at) if after[stop])
    return after.index(1, at)


def _index_stops(parts: Sequence[Part], place: int, name: str, at: int) -> list[int]:
    """Where an index that begins at a position may end, the longest first."""
    if place and isinstance(parts[place - 1], bool) and at and _is_digit(name[at - 1]):
        return []
    found = _INDEX.match(name, at)
    if found is None:
        return []
    stops = list(range(found.end(), at, -1))
    if place + 1 < len(parts) and isinstance(parts[place + 1], bool):
        stops = [stop for stop in stops if stop == len(name) or not _is_digit(name[stop])]
    return stops


def _is_digit(char: str) -> bool:
    return "0" <= char <= "9"
