"""What a UCL text says, as a tree. Equality ignores spans; comments and blank lines count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from reshard.algebra.split import SplitRule
from reshard.errors import Source, Span
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


# ---- terms ---------------------------------------------------------------------------------------


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


# ---- statements ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AxisStatement:
    """`axis NAME = SIZE`."""

    name: Word
    size: Expression | None = None
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TensorStatement:
    """`tensor NAME [AXES] when CONDITION`."""

    name: Word
    axes: tuple[Word, ...] = ()
    when: Expression | None = None
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class MeshAxis:
    """A mesh axis, with its size where the layout fixes it."""

    name: Word
    size: Expression | None = None


@dataclass(frozen=True, slots=True)
class MeshStatement:
    """`mesh AXIS, AXIS = SIZE, ...`."""

    axes: tuple[MeshAxis, ...]
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ConfigStatement:
    """`config SIZE = EXPRESSION over the framework's own configuration`."""

    name: Word
    value: Expression
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PlaceStatement:
    """`place AXES over MESH-AXES ...`; an axis that is only padded is cut over none."""

    axes: tuple[Word, ...]
    placement: Placement
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PartitionStatement:
    """`partition STATES over MESH-AXIS as KIND align EXPRESSION`."""

    states: tuple[Word, ...]
    over: Word
    kind: Literal["buffer", "each", "rows"]
    align: Expression | None = None
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RuleStatement:
    """`"NAME" = atom[DIMS] ...`.

    Args:  pattern: the text between the quotes.  rest: whether `...` ends the dims.
    """

    pattern: Word
    atom: Word | None
    dims: tuple[TermTree, ...]
    rest: bool = False
    stage: Literal["first", "last"] | None = None
    averaged_over: tuple[Word, ...] = ()
    optional: bool = False
    when: Expression | None = None
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)
    stage_span: Span | None = field(default=None, compare=False, repr=False)
    rest_span: Span | None = field(default=None, compare=False, repr=False)


# ---- files ---------------------------------------------------------------------------------------

Role = Literal["state", "states", "number", "named", "order", "run", "fill", "keep", "leave"]


@dataclass(frozen=True, slots=True)
class EntryStatement:
    """What lies at a place of a file, such as `state param at "model/{name}"`.

    Args:  names: of the states, or of the fact of the run.  places: alternatives, as quoted.
           because: why it is left out.  value: what is filled in.
    """

    role: Role
    names: tuple[Word, ...]
    places: tuple[Word, ...]
    optional: bool = False
    because: Word | None = None
    value: Expression | None = None
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FileStatement:
    """`file "NAME" or "NAME" optional { ... }`; comments as in `ModelBlock`."""

    names: tuple[Word, ...]
    statements: tuple[EntryStatement, ...] = ()
    optional: bool = False
    opening: str | None = None
    closing: tuple[str, ...] = ()
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TieStatement:
    """`tie "ALIAS" = "NAME"`."""

    alias: Word
    name: Word
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LeaveStatement:
    """`leave out "NAMES" because "REASON"`."""

    pattern: Word
    because: Word
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class WrapperStatement:
    """`wrapper "PART", "PART"`."""

    parts: tuple[Word, ...]
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NamesStatement:
    """`names LAYOUT`."""

    layout: Word
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class OrderStatement:
    """`order "NAME", "NAME" when CONDITION`."""

    names: tuple[Word, ...]
    when: Expression | None = None
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


ModelStatement = AxisStatement | TensorStatement
LayoutStatement = (
    MeshStatement
    | ConfigStatement
    | PlaceStatement
    | PartitionStatement
    | FileStatement
    | TieStatement
    | LeaveStatement
    | WrapperStatement
    | NamesStatement
    | OrderStatement
    | RuleStatement
)
Statement = ModelStatement | LayoutStatement | EntryStatement


# ---- blocks --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelBlock:
    """`model NAME { ... }`.

    Args:  opening: the comment behind `{`.  closing: comment lines before `}`.
           trivia: `remark` is the comment behind `}`.
    """

    name: Word
    statements: tuple[ModelStatement, ...]
    opening: str | None = None
    closing: tuple[str, ...] = ()
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LayoutBlock:
    """`layout NAME of MODEL when CONDITION { ... }`; comments as in `ModelBlock`."""

    name: Word
    model: Word | None
    statements: tuple[LayoutStatement, ...]
    when: Expression | None = field(default=None, kw_only=True)
    opening: str | None = None
    closing: tuple[str, ...] = ()
    trivia: Trivia = Trivia()
    span: Span | None = field(default=None, compare=False, repr=False)


Block = ModelBlock | LayoutBlock


@dataclass(frozen=True, slots=True)
class Document:
    """A whole text: models and layouts in any order; `closing` are comment lines at its end."""

    blocks: tuple[Block, ...]
    closing: tuple[str, ...] = ()
    source: Source = field(default=Source("<text>", ""), compare=False, repr=False)

    @property
    def models(self) -> tuple[ModelBlock, ...]:
        """The models, in order."""
        return tuple(block for block in self.blocks if isinstance(block, ModelBlock))

    @property
    def layouts(self) -> tuple[LayoutBlock, ...]:
        """The layouts, in order."""
        return tuple(block for block in self.blocks if isinstance(block, LayoutBlock))
