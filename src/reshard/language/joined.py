"""Names that are put together from strings of a text, with the place of each part."""

from __future__ import annotations

from dataclasses import dataclass, field

from reshard.errors import Source, Span
from reshard.language.tree import Word


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a name, and where it stands."""

    text: str
    source: Source = field(repr=False)
    start: int


@dataclass(frozen=True, slots=True)
class JoinedSpan(Span):
    """The span of the last string of a name that is put together from several."""

    parts: tuple[Part, ...] = ()

    def inside(self, start: int, end: int) -> Span:
        """Where a part of the name stands; of what stands in two strings, the beginning."""
        begin = 0
        for part in self.parts:
            if start < begin + len(part.text) or part is self.parts[-1]:
                at = part.start + start - begin
                return Span.of(part.source, at, at + min(end - start, len(part.text)))
            begin += len(part.text)
        return self


def joined(first: Word, second: Word) -> Word:
    """The name of which two strings are the beginning and the end."""
    return _word((*_parts(first), *_parts(second)), second)


def replaced(word: Word, start: int, end: int, text: str = "") -> Word:
    """A name with another text in place of a part of it."""
    out: list[Part] = []
    begin = 0
    for part in _parts(word):
        first, last = max(start - begin, 0), max(min(end - begin, len(part.text)), 0)
        if first >= len(part.text) or last <= 0:
            out.append(part)
        else:
            out.append(Part(part.text[:first], part.source, part.start))
            if begin <= start:
                out.append(Part(text, part.source, part.start + first))
            out.append(Part(part.text[last:], part.source, part.start + last))
        begin += len(part.text)
    return _word(tuple(part for part in out if part.text), word)


def _parts(word: Word) -> tuple[Part, ...]:
    span = word.span
    if isinstance(span, JoinedSpan):
        return span.parts
    if span is None:
        return (Part(word.text, Source("", ""), 0),)
    return (Part(word.text, span.source, span.start + 1),)


def _word(parts: tuple[Part, ...], last: Word) -> Word:
    text, span = "".join(part.text for part in parts), last.span
    if span is None:
        return Word(text)
    return Word(text, JoinedSpan(span.source, span.start, span.end, parts))
