"""Name patterns: which stored names a rule covers, and which indices they carry."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from reshard.algebra.split import SplitRule
from reshard.errors import Label, ReshardError, Span, layout_error
from reshard.language.lazy_regex import LazyRegex
from reshard.language.matching import MAX_WILD, Part, match_runs, simple_length

MAX_LENGTH = 10_000
"""Characters of a pattern, and of a name that is matched."""

_INDEX = "0|[1-9][0-9]{0,17}"
_WORD = r"[A-Za-z][A-Za-z0-9_]*"
_NUMBERS = r"[0-9]{1,18}(?:\s*,\s*[0-9]{1,18})*"
_SLOT = re.compile(
    rf"\s*(?P<local>local\s+)?(?P<axis>{_WORD})(?:\s*\+\s*(?P<plus>{_WORD}))?"
    rf"(?:\s+over\s+(?P<one>{_WORD})|\s+over\s*\(\s*(?P<several>{_WORD}(?:\s*,\s*{_WORD})*)\s*\))?"
    rf"(?:\s*\bas\b\s*(?:(?P<named>chunk|balanced)|\(\s*(?P<sizes>{_NUMBERS})\s*\)))?\s*"
)


@dataclass(frozen=True, slots=True)
class IndexSlot:
    """An index in a name: `{layer}`, `{local layer}`, or `{local e over ep as (3, 1)}`.

    Args:  axis: whose index it is.  local: counted from 0 on every rank of the axis's placement.
           over, rule, sizes: the placement, where the name itself states it (`layout.Split`).
           plus: the size that the name adds to the index, `{mtp + num_hidden_layers}`.
           offset: its value; None where it is not known yet, and no name matches.
           below: the number of indices, where names behind them are others'; None for any.
    """

    axis: str
    local: bool = False
    over: tuple[str, ...] = ()
    rule: SplitRule = "even"
    sizes: tuple[int, ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)
    plus: str = ""
    offset: int | None = 0
    below: int | None = None


@dataclass(frozen=True, slots=True)
class Wildcard:
    """`*`, a run of any characters but dots, or `**`, any run; both may be empty."""

    dots: bool


@dataclass(frozen=True, slots=True)
class Match:
    """What a name filled in: indices by axis, and what the wildcards took, in order."""

    indices: dict[str, int]
    captures: tuple[str, ...]


Piece = str | IndexSlot | Wildcard


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A pattern over whole names.

    Args:  text: as written between the quotes.  pieces: literal text, index slots, and wildcards.
           slots: the index slots of these, in order.

    An index is written without leading zeros, and beside a wildcard it takes all the digits there
    are, so `layer_01` has no index that `{layer}` could be.
    """

    text: str
    pieces: tuple[Piece, ...]
    _regex: LazyRegex = field(compare=False, repr=False)
    _simple_length: int = field(compare=False, repr=False)
    slots: tuple[IndexSlot, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        slots = tuple(piece for piece in self.pieces if isinstance(piece, IndexSlot))
        object.__setattr__(self, "slots", slots)

    @staticmethod
    def parse(text: str, span: Span | None = None) -> NamePattern:
        """Read a pattern.

        Args:  span: of the whole string, quotes included, for messages.
        Raises: name-pattern.
        """
        if len(text) > MAX_LENGTH:
            raise _fault(
                f"a name has {len(text)} characters; at most {MAX_LENGTH} can be matched",
                "too long",
                span,
                0,
                len(text),
            )
        pieces = _pieces(text, span)
        wild = sum(not isinstance(piece, str) for piece in pieces)
        if wild > MAX_WILD:
            raise _fault(
                f"a name has {wild} wildcards and indices; at most {MAX_WILD} can be matched",
                "too many",
                span,
                0,
                len(text),
            )
        length = simple_length(_parts(pieces))
        return NamePattern(text, pieces, LazyRegex(_expression(pieces)), length)

    def with_slots(self, change: Callable[[IndexSlot], IndexSlot]) -> NamePattern:
        """The pattern with other slots of the same form."""
        pieces = tuple(change(x) if isinstance(x, IndexSlot) else x for x in self.pieces)
        return replace(self, pieces=pieces)

    @property
    def wildcards(self) -> int:
        """How many captures a match has."""
        return sum(isinstance(piece, Wildcard) for piece in self.pieces)

    def match(self, name: str) -> Match | None:
        """What a whole name fills in, or None if it is not covered."""
        if len(name) <= self._simple_length:
            runs = self._regex.groups(name)
        else:
            runs = match_runs(_parts(self.pieces), name)
        if runs is None:
            return None
        indices: dict[str, int] = {}
        captures: list[str] = []
        fillers = (piece for piece in self.pieces if not isinstance(piece, str))
        for piece, taken in zip(fillers, runs, strict=True):
            if isinstance(piece, Wildcard):
                captures.append(taken)
            else:
                index = -1 if piece.offset is None else int(taken) - piece.offset
                if index < 0 or (piece.below is not None and index >= piece.below):
                    return None
                indices[piece.axis] = index
        return Match(indices, tuple(captures))

    def fill(self, indices: Mapping[str, int], captures: tuple[str, ...] = ()) -> str:
        """The name with these indices and wildcard runs; the inverse of `match`.

        Args:  indices: by axis, further ones are not looked at.  captures: one for each wildcard.
        """
        runs = iter(captures)
        out = []
        for piece in self.pieces:
            if isinstance(piece, str):
                out.append(piece)
            elif isinstance(piece, IndexSlot):
                assert piece.offset is not None, "its value is found before names are made"
                out.append(str(indices[piece.axis] + piece.offset))
            else:
                out.append(next(runs))
        return "".join(out)


def quoted(name: str) -> str:
    """A name as the text of a pattern that covers it alone."""
    return re.sub(r'([\\"*{}])', r"\\\1", name)


def unescaped(text: str) -> str:
    """Text between quotes without its backslashes."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _parts(pieces: tuple[Piece, ...]) -> tuple[Part, ...]:
    """The pieces as `matching` has them."""
    return tuple(
        piece if isinstance(piece, str) else piece.dots if isinstance(piece, Wildcard) else None
        for piece in pieces
    )


def _pieces(text: str, span: Span | None) -> tuple[Piece, ...]:
    out: list[Piece] = []
    literal = ""
    at = 0
    while at < len(text):
        start, mark = at, text[at]
        if mark == "\\":
            if text[at + 1 : at + 2] not in ("*", "{", "}", '"', "\\"):
                raise _fault(
                    "a backslash stands before `*`, `{`, `}`, a quote, or another backslash",
                    "not one of these",
                    span,
                    at,
                    at + 2,
                    "write a backslash as `\\\\`",
                )
            literal += text[at + 1]
            at += 2
            continue
        if mark == "}":
            raise _fault(
                "`}` in a name closes no `{`",
                "no `{` before it",
                span,
                at,
                at + 1,
                "write a brace that is part of the name as `\\}`",
            )
        if mark not in "*{":
            literal += mark
            at += 1
            continue
        if literal:
            out.append(literal)
            literal = ""
        if mark == "*":
            at += 2 if text.startswith("**", at) else 1
            out.append(Wildcard(at - start == 2))
        else:
            at = _closing(text, start, span)
            slot = _slot(text, start, at, span)
            if out and isinstance(out[-1], IndexSlot):
                raise _fault(
                    f"the indices `{out[-1].axis}` and `{slot.axis}` touch in a name",
                    "where it starts cannot be told",
                    span,
                    start,
                    at,
                )
            out.append(slot)
    if literal or not out:
        out.append(literal)
    return tuple(out)


def _closing(text: str, start: int, span: Span | None) -> int:
    end = text.find("}", start)
    if end < 0:
        raise _fault(
            "`{` in a name is not closed",
            "no `}` behind it",
            span,
            start,
            start + 1,
            "write a brace that is part of the name as `\\{`",
        )
    return end + 1


def _slot(text: str, start: int, end: int, span: Span | None) -> IndexSlot:
    found = _SLOT.fullmatch(text, start + 1, end - 1)
    if found is None or (found["axis"] == "local" and not found["local"]):
        raise _fault(
            f"`{text[start:end]}` is no index of a name",
            "not understood",
            span,
            start,
            end,
            _instead(text[start + 1 : end - 1].strip()),
        )
    over = tuple(re.findall(_WORD, found["one"] or found["several"] or ""))
    sizes = tuple(int(number) for number in re.findall("[0-9]+", found["sizes"] or ""))
    rule: SplitRule = "even"
    if found["named"]:
        rule = "chunk" if found["named"] == "chunk" else "balanced"
    elif sizes:
        rule = "sizes"
    if found["plus"] and (found["local"] or over):
        raise _fault(
            f"`{text[start:end]}` is no index of a name",
            "counted on each rank, and moved",
            span,
            start,
            end,
            "an index that starts behind others counts through all ranks: "
            f"`{{{found['axis']} + {found['plus']}}}`",
        )
    if (over and not found["local"]) or (rule != "even" and not over):
        raise _fault(
            f"`{text[start:end]}` is no index of a name",
            "`over` needs `local`" if over else "`as` needs `over`",
            span,
            start,
            end,
            "an index that is cut over the mesh is `{local e over ep as (3, 1)}`",
        )
    return IndexSlot(
        found["axis"],
        bool(found["local"]),
        over,
        rule,
        sizes,
        _within(span, start, end),
        found["plus"] or "",
        None if found["plus"] else 0,
    )


def _instead(said: str) -> str:
    """What to write in place of an index that is none."""
    several = re.fullmatch(rf"(?:local\s+)?({_WORD}(?:\s*[ ,*]\s*{_WORD})+)", said)
    if several and not re.search(r"\b(?:over|as|local)\b", several[1]):
        axes = re.findall(_WORD, several[1])
        return (
            "an index is of one axis: declare one that counts through "
            f"{' and '.join(f'`{axis}`' for axis in axes)}, as in `axis n = num_attention_heads`, "
            "give the model's tensor this axis in their place, and write `{n}`"
        )
    axis = re.match(_WORD, said)
    if axis and re.fullmatch(rf"{_WORD}\s*:.*", said):
        return f"an index is written without leading zeros: `{{{axis[0]}}}`"
    if axis and re.fullmatch(rf"{_WORD}\s*[-+*/%].*", said):
        return f"an index counts from 0 and is not computed: `{{{axis[0]}}}`"
    return "an index is `{layer}`, `{local layer}`, or `{local e over ep as (3, 1)}`"


def _expression(pieces: tuple[Piece, ...]) -> str:
    out = []
    for place, piece in enumerate(pieces):
        if isinstance(piece, str):
            out.append(re.escape(piece))
        elif isinstance(piece, Wildcard):
            # shortest first, so that an index behind it gets all of its digits
            out.append("(.*?)" if piece.dots else "([^.]*?)")
        else:
            before = place > 0 and isinstance(pieces[place - 1], Wildcard)
            behind = place + 1 < len(pieces) and isinstance(pieces[place + 1], Wildcard)
            out.append(f"{'(?<![0-9])' * before}({_INDEX}){'(?![0-9])' * behind}")
    return "".join(out)


def _within(span: Span | None, start: int, end: int) -> Span | None:
    """The span of `text[start:end]` inside the quotes of a string."""
    return None if span is None else span.inside(start, end)


def _fault(
    headline: str, label: str, span: Span | None, start: int, end: int, help_text: str = ""
) -> ReshardError:
    inside = _within(span, start, end)
    return layout_error(
        "name-pattern",
        headline,
        helps=[help_text] if help_text else [],
        primary=None if inside is None else Label(inside, label),
    )
