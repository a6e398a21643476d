"""Words and the terms of dimensions: the leaves of a tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from reshard.algebra.split import SplitRule
from reshard.errors import Span
from reshard.language.expression import Expression


@dataclass(frozen=True, slots=True)
class Word:
    """A name, with its place."""

    text: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Trivia:
    """What stands around a statement and means nothing.

    Args:  comments: lines before it (and from inside it), each from its `#` on.
           remark: the comment behind it on its last line, or None.
           blank: whether blank lines separate it from what is before.
    """

    comments: tuple[str, ...] = ()
    remark: str | None = None
    blank: bool = False


NO_TRIVIA = Trivia()


@dataclass(frozen=True, slots=True)
class Placement:
    """How an axis lies along the mesh, and its padding; see `layout.Split`."""

    over: tuple[Word, ...] = ()
    rule: SplitRule = "even"
    sizes: tuple[int, ...] = ()
    pad_to: Expression | None = None
    truncated_to: Expression | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AxisTerm:
    """An axis; the name `_` is an anonymous one."""

    name: Word
    size: Expression | None = None
    placement: Placement | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ProductTerm:
    """Terms side by side, never exactly one and never products themselves; none is `1`."""

    factors: tuple[TermTree, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SumPart:
    """A summand; without a label it is never a lone sum."""

    label: Word | None
    term: TermTree
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SumTerm:
    """Summands in parentheses; a single one has a label."""

    parts: tuple[SumPart, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


TermTree = AxisTerm | ProductTerm | SumTerm


def axis_terms(terms: tuple[TermTree, ...]) -> Iterator[AxisTerm]:
    """Every axis in some terms, in order of appearance."""
    for term in terms:
        if isinstance(term, AxisTerm):
            yield term
        elif isinstance(term, ProductTerm):
            yield from axis_terms(term.factors)
        else:
            yield from axis_terms(tuple(part.term for part in term.parts))


def sum_terms(terms: tuple[TermTree, ...]) -> Iterator[SumTerm]:
    """Every sum in some terms, in order of appearance, an outer one before its inner ones."""
    for term in terms:
        if isinstance(term, ProductTerm):
            yield from sum_terms(term.factors)
        elif isinstance(term, SumTerm):
            yield term
            yield from sum_terms(tuple(part.term for part in term.parts))
