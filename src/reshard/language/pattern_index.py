"""Which of many patterns may match a name, found by their literal text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reshard.language.pattern import Match, NamePattern, Wildcard

Part = tuple[int, int] | None
"""Of a pattern, between dots: how long its literal beginning and end are; None if all of it is."""

_OPEN = "\0"


class PatternIndex:
    """Patterns by what is literal in them.

    A pattern whose wildcards take no dots has a fixed number of parts between dots: it is found by
    the literal text of each. Any other one is found by its literal beginning and end.
    """

    def __init__(self, patterns: Sequence[NamePattern]) -> None:
        self._patterns = patterns
        self._by_parts: dict[tuple[Part, ...], dict[tuple[str, ...], list[int]]] = {}
        self._by_ends: dict[tuple[int, int], dict[tuple[str, str], list[int]]] = {}
        for place, pattern in enumerate(patterns):
            text = "".join(_OPEN if not isinstance(x, str) else x for x in pattern.pieces)
            if any(isinstance(piece, Wildcard) and piece.dots for piece in pattern.pieces):
                begin, end = text.partition(_OPEN)[0], text.rpartition(_OPEN)[2]
                ends = self._by_ends.setdefault((len(begin), len(end)), {})
                ends.setdefault((begin, end), []).append(place)
                continue
            parts = text.split(".")
            kind = tuple(_kind(part) for part in parts)
            known = self._by_parts.setdefault(kind, {})
            known.setdefault(tuple(map(_literal, parts, kind)), []).append(place)

    def matches(self, name: str) -> Iterator[tuple[int, Match]]:
        """The patterns that match a name, by number and in their order, with what it fills in."""
        found: list[int] = []
        parts = name.split(".")
        for kind, known in self._by_parts.items():
            if len(kind) == len(parts):
                found += known.get(tuple(map(_literal, parts, kind)), ())
        for (begin, end), ends in self._by_ends.items():
            found += ends.get((name[:begin], name[len(name) - end :]), ())
        for place in sorted(found):
            match = self._patterns[place].match(name)
            if match is not None:
                yield place, match


def _kind(part: str) -> Part:
    if _OPEN not in part:
        return None
    return part.index(_OPEN), len(part) - 1 - part.rindex(_OPEN)


def _literal(part: str, kind: Part) -> str:
    """What must be the same in a part of a name and of a pattern of its kind."""
    if kind is None:
        return part
    begin, end = kind
    return f"{part[:begin]}{_OPEN}{part[max(len(part) - end, 0) :]}"
