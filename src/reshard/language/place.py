"""Places of files: names of files, and paths in the tree that a file holds. Both are patterns.

The same text finds what is there when reading and makes it when writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from reshard.errors import Label, ReshardError, Span, layout_error
from reshard.language.lazy_regex import LazyRegex

NAME, NUMBER, GROUP, STATE = "name", "number", "group", "state"
MODULE, PARAMETER = "module", "parameter"
HOLES = (NAME, NUMBER, GROUP, STATE, MODULE, PARAMETER)
"""Holes that no mesh axis can be: a parameter, its number, its group, a kind of state; and the two
parts of a parameter's name, its module, with `/` for its dots, and its own.
"""

Bindings = Mapping[str, str | int]
"""What the holes of a place stand for: a mesh axis, number, or group for an int, else a text."""

_HOLE = re.compile(
    r"\{\s*(?P<count>#)?(?P<name>[A-Za-z][A-Za-z0-9_]*)(?::0?(?P<width>[1-9]))?\s*\}"
)
_TEXTS = {NAME: ".+", STATE: "[^.]+", MODULE: ".+", PARAMETER: "[A-Za-z0-9_]+"}


@dataclass(frozen=True, slots=True)
class Hole:
    """`{tp}`, `{tp:02}` with zeros in front, or `{#tp}`, the size of the axis."""

    name: str
    width: int = 0
    is_size: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Star:
    """`*`: any text of a file's name or of one key."""


Piece = str | Hole | Star


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text with holes: the name of a file, or one key of a path."""

    pieces: tuple[Piece, ...]
    _regex: LazyRegex = field(compare=False, repr=False)

    @property
    def holes(self) -> tuple[Hole, ...]:
        """The holes, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Hole))

    @property
    def has_star(self) -> bool:
        """Whether it covers texts that it cannot make."""
        return any(isinstance(piece, Star) for piece in self.pieces)

    def match(self, text: str) -> dict[str, str | int] | None:
        """What the holes stand for in a text; None if it is not covered."""
        groups = self._regex.groups(text)
        if groups is None:
            return None
        out: dict[str, str | int] = {}
        for hole, taken in zip(self.holes, groups, strict=True):
            value = taken if hole.name in _TEXTS else int(taken)
            key = f"#{hole.name}" if hole.is_size else hole.name
            if out.setdefault(key, value) != value:
                return None
        if MODULE in out and PARAMETER in out:
            module = str(out.pop(MODULE)).replace("/", ".")
            out = {NAME: f"{module}.{out.pop(PARAMETER)}", **out}
        return out

    def fill(self, bindings: Bindings) -> str:
        """The text with what the holes stand for."""
        if NAME in bindings:
            module, _, parameter = str(bindings[NAME]).rpartition(".")
            parts = {MODULE: module.replace(".", "/"), PARAMETER: parameter}
            bindings = {**bindings, **parts}
        return "".join(
            piece if isinstance(piece, str) else _filled(piece, bindings) for piece in self.pieces
        )


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a dict."""

    pattern: Pattern


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a list: `[0]`, `[{group}]`, or `[*]`."""

    index: int | Hole | Star


@dataclass(frozen=True, slots=True)
class Rest:
    """`**`: every value below that nothing else takes."""


Step = Key | Item | Rest


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a tree of dicts and lists: `optimizer/param_groups[{group}]/params`.

    Args:  text: as written between the quotes; `/` alone is the whole tree.
    """

    text: str
    steps: tuple[Step, ...]
    span: Span | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def parse(text: str, span: Span | None = None) -> Place:
        """Read a path.

        Raises: bad-place.
        """
        steps: list[Step] = []
        if text not in ("", "/"):
            for start, part in _split(text, "/"):
                steps += _steps(part, span, start)
        return Place(text, tuple(steps), span)

    @property
    def holes(self) -> tuple[Hole, ...]:
        """The holes, in order."""
        return tuple(hole for step in self.steps for hole in _holes(step))

    def has(self, name: str) -> bool:
        """Whether a hole of this name is in it."""
        return any(hole.name == name for hole in self.holes)


@dataclass(frozen=True, slots=True)
class FileName:
    """The name of a file, relative to the folder: `mp_rank_{tp:02}/model.pt`."""

    text: str
    pattern: Pattern
    span: Span | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def parse(text: str, span: Span | None = None) -> FileName:
        """Read a name.

        Raises: bad-place.
        """
        if not text or text.startswith("/") or ".." in text.split("/") or text.endswith("/"):
            raise _fault(
                "a file is named relative to the folder", "no such name", span, 0, len(text)
            )
        return FileName(text, _pattern(text, span, 0, is_file=True), span)


def key_text(key: object) -> str:
    """The text of a key of a dict, which may be a number, a type, or a tuple of these."""
    if isinstance(key, tuple):
        return f"({', '.join(map(key_text, key))})"
    return str(key)


def _filled(piece: Hole | Star, bindings: Bindings) -> str:
    if isinstance(piece, Star):
        raise ValueError("a name with `*` cannot be made")
    value = bindings[f"#{piece.name}" if piece.is_size else piece.name]
    return str(value).zfill(piece.width)


def _holes(step: Step) -> tuple[Hole, ...]:
    if isinstance(step, Key):
        return step.pattern.holes
    if isinstance(step, Item) and isinstance(step.index, Hole):
        return (step.index,)
    return ()


def _split(text: str, mark: str) -> Iterator[tuple[int, str]]:
    """The parts between marks, with where each begins; a backslash takes the mark's meaning."""
    start, at = 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        if text[at] == mark:
            yield start, text[start:at]
            start = at + 1
        at += 1
    yield start, text[start:]


def _steps(part: str, span: Span | None, start: int) -> Iterator[Step]:
    """A key, and the items behind it."""
    if part == "**":
        yield Rest()
        return
    if not part:
        raise _fault("a key of a path is empty", "no key here", span, start, start + 1)
    first = re.match(r"(?:\\.|[^\\\[])*", part)
    assert first is not None
    if first[0]:
        yield Key(_pattern(first[0], span, start))
    at = len(first[0])
    while at < len(part):
        found = re.compile(r"\[(?:(\d{1,9})|(\*)|(\{[^{}\]]*\}))\]").match(part, at)
        if found is None:
            raise _fault(
                "an item of a list is `[0]`, `[*]`, or `[{group}]`",
                "not understood",
                span,
                start + at,
                start + len(part),
                "write a bracket that is part of a key as `\\[`",
            )
        if found[1]:
            yield Item(int(found[1]))
        elif found[2]:
            yield Item(Star())
        else:
            yield Item(_hole(found[3], span, start + at + 1))
        at = found.end()


def _pattern(text: str, span: Span | None, start: int, *, is_file: bool = False) -> Pattern:
    pieces: list[Piece] = []
    regex: list[str] = []
    at = 0
    while at < len(text):
        mark = text[at]
        if mark == "{":
            end = text.find("}", at) + 1
            if not end:
                raise _fault(
                    "`{` is not closed", "no `}` behind it", span, start + at, start + at + 1
                )
            hole = _hole(text[at:end], span, start + at)
            pieces.append(hole)
            regex.append(f"({_TEXTS.get(hole.name, '[0-9]{1,9}')})")
            at = end
        elif mark == "*":
            pieces.append(Star())
            regex.append("[^/]*?" if is_file else ".*?")
            at += 1
        else:
            literal = text[at + 1 : at + 2] if mark == "\\" else mark
            at += 2 if mark == "\\" else 1
            if pieces and isinstance(pieces[-1], str):
                pieces[-1] += literal
            else:
                pieces.append(literal)
            regex.append(re.escape(literal))
    return Pattern(tuple(pieces), LazyRegex("".join(regex)))


def _hole(text: str, span: Span | None, start: int) -> Hole:
    found = _HOLE.fullmatch(text)
    if found is None:
        raise _fault(
            f"`{text}` is no hole of a place",
            "not understood",
            span,
            start,
            start + len(text),
            "a hole is `{name}`, `{number}`, `{group}`, `{state}`, or one of a mesh axis: `{tp}`, "
            "`{tp:02}`, `{#tp}`",
        )
    return Hole(
        found["name"],
        int(found["width"] or 0),
        bool(found["count"]),
        _within(span, start, start + len(text)),
    )


def _within(span: Span | None, start: int, end: int) -> Span | None:
    if span is None:
        return None
    return span.inside(start, end)


def _fault(
    headline: str, label: str, span: Span | None, start: int, end: int, help_text: str = ""
) -> ReshardError:
    inside = _within(span, start, end)
    return layout_error(
        "bad-place",
        headline,
        helps=[help_text] if help_text else [],
        primary=None if inside is None else Label(inside, label),
    )
