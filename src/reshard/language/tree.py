"""What a UCL text says, as a tree. Equality ignores spans; comments and blank lines count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reshard.errors import Source, Span
from reshard.language.expression import Expression
from reshard.language.tree_terms import (
    NO_TRIVIA,
    AxisTerm,
    Placement,
    ProductTerm,
    SumPart,
    SumTerm,
    TermTree,
    Trivia,
    Word,
    axis_terms,
    sum_terms,
)

__all__ = [
    "NO_TRIVIA",
    "AxisStatement",
    "AxisTerm",
    "Bias",
    "Block",
    "ConfigStatement",
    "ConfigsStatement",
    "Document",
    "EntryStatement",
    "FileStatement",
    "FixStatement",
    "IncludeStatement",
    "LayoutBlock",
    "LayoutStatement",
    "LeaveStatement",
    "LetStatement",
    "MeshAxis",
    "MeshStatement",
    "ModelBlock",
    "ModelStatement",
    "NamesStatement",
    "OrderStatement",
    "PartitionStatement",
    "PlaceStatement",
    "Placement",
    "ProductTerm",
    "Role",
    "RuleStatement",
    "SharedBlock",
    "StackStatement",
    "Statement",
    "SumPart",
    "SumTerm",
    "TensorStatement",
    "TensorsStatement",
    "TermTree",
    "TieStatement",
    "TowerStatement",
    "Trivia",
    "UnderStatement",
    "UseStatement",
    "Word",
    "WrapperStatement",
    "axis_terms",
    "sum_terms",
]


# ---- statements ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AxisStatement:
    """`axis NAME = SIZE`."""

    name: Word
    size: Expression | None = None
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TensorStatement:
    """`tensor NAME [AXES] when CONDITION`."""

    name: Word
    axes: tuple[Word, ...] = ()
    when: Expression | None = None
    trivia: Trivia = NO_TRIVIA
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
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ConfigStatement:
    """`config SIZE = EXPRESSION over the framework's own configuration`."""

    name: Word
    value: Expression
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PlaceStatement:
    """`place AXES over MESH-AXES ...`; an axis that is only padded is cut over none."""

    axes: tuple[Word, ...]
    placement: Placement
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


PartitionKind = Literal["buffer", "each", "balanced", "rows", "dtensor", "buckets"]


@dataclass(frozen=True, slots=True)
class PartitionStatement:
    """`partition STATES over AXIS as KIND of SIZE align NUMBER starts NUMBER round_robin`."""

    states: tuple[Word, ...]
    over: Word
    kind: PartitionKind
    align: Expression | None = None
    size: Expression | None = None
    starts: Expression | None = None
    is_round_robin: bool = False
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RuleStatement:
    """`"NAME" = atom[DIMS] ...`.

    Args:  pattern: the text between the quotes.  rest: whether `...` ends the dims.
           bias: whether `with bias` stands behind it; not after expansion.
    """

    pattern: Word
    atom: Word | None
    dims: tuple[TermTree, ...]
    rest: bool = False
    stage: Literal["first", "last"] | None = None
    averaged_over: tuple[Word, ...] = ()
    optional: bool = False
    when: Expression | None = None
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)
    stage_span: Span | None = field(default=None, compare=False, repr=False)
    rest_span: Span | None = field(default=None, compare=False, repr=False)
    bias: bool = False
    bias_span: Span | None = field(default=None, compare=False, repr=False)


# ---- files ---------------------------------------------------------------------------------------

Role = Literal[
    "state", "states", "slices", "number", "named", "order", "run", "fill", "keep", "leave"
]


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
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FileStatement:
    """`file "NAME" or "NAME" optional { ... }`; comments as in `ModelBlock`."""

    names: tuple[Word, ...]
    statements: tuple[EntryStatement, ...] = ()
    optional: bool = False
    opening: str | None = None
    closing: tuple[str, ...] = ()
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)
    brace: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TieStatement:
    """`tie "ALIAS" = "NAME" when CONDITION`."""

    alias: Word
    name: Word
    when: Expression | None = None
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LeaveStatement:
    """`leave out "NAMES" because "REASON"`."""

    pattern: Word
    because: Word
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class WrapperStatement:
    """`wrapper "PART", "PART"`."""

    parts: tuple[Word, ...]
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NamesStatement:
    """`names LAYOUT`."""

    layout: Word
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class OrderStatement:
    """`order "NAME", "NAME" when CONDITION`."""

    names: tuple[Word, ...]
    when: Expression | None = None
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


# ---- what `expand` replaces by the statements above ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Bias:
    """`bias NAME [AXES] when CONDITION` behind a tensor.

    Args:  axes: None for those of the tensor but the last.
    """

    name: Word
    axes: tuple[Word, ...] | None = None
    when: Expression | None = None


@dataclass(frozen=True, slots=True)
class TensorsStatement:
    """`tensor NAME, NAME [AXES] when CONDITION bias ...`: several tensors, or one with a bias.

    Args:  uncut: axes that are whole on every rank, though they are cut in other tensors.
    """

    names: tuple[Word, ...]
    axes: tuple[Word, ...] = ()
    when: Expression | None = None
    bias: Bias | None = None
    uncut: tuple[str, ...] = ()
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LetStatement:
    """`let NAME = EXPRESSION`."""

    name: Word
    value: Expression
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TowerStatement:
    """`include MODEL as NAME`, in a model."""

    model: Word
    alias: Word | None = None
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ConfigsStatement:
    """`config NAME, NAME = EXPRESSION`: several sizes, or sizes that are spelled as here."""

    names: tuple[Word, ...]
    value: Expression | None = None
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class UseStatement:
    """`use NAME, NAME`."""

    names: tuple[Word, ...]
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FixStatement:
    """`fix NAME = EXPRESSION`."""

    name: Word
    value: Expression
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class StackStatement:
    """`stack AXIS, AXIS`."""

    axes: tuple[Word, ...]
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class IncludeStatement:
    """`include MODEL.LAYOUT as NAME under "PREFIX" from PATH`.

    Args:  layout: with dots.  alias: of the model's names.  path: of its configuration in that of
           the checkpoint.
    """

    layout: Word
    prefix: Word
    alias: Word | None = None
    path: Word | None = None
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class UnderStatement:
    """`under "PREFIX" { ... }`; comments as in `ModelBlock`."""

    prefix: Word
    statements: tuple[RuleStatement | UnderStatement, ...] = ()
    opening: str | None = None
    closing: tuple[str, ...] = ()
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)
    brace: int = field(default=0, compare=False, repr=False)


ModelStatement = AxisStatement | TensorStatement | TensorsStatement | LetStatement | TowerStatement
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
    | ConfigsStatement
    | UseStatement
    | FixStatement
    | StackStatement
    | IncludeStatement
    | UnderStatement
)

# ---- blocks --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelBlock:
    """`model NAME like MODEL { ... }`.

    Args:  opening: the comment behind `{`.  closing: comment lines before `}`.
           trivia: `remark` is the comment behind `}`.  brace: where the `{` is.
    """

    name: Word
    statements: tuple[ModelStatement, ...]
    opening: str | None = None
    closing: tuple[str, ...] = ()
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)
    like: Word | None = field(default=None, kw_only=True)
    brace: int = field(default=0, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class LayoutBlock:
    """`layout NAME of MODEL like LAYOUT whole when CONDITION { ... }`.

    Args:  whole: of the layout that it is like, without what is of a mesh.  Comments as in
           `ModelBlock`.
    """

    name: Word
    model: Word | None
    statements: tuple[LayoutStatement, ...]
    when: Expression | None = field(default=None, kw_only=True)
    opening: str | None = None
    closing: tuple[str, ...] = ()
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)
    like: Word | None = field(default=None, kw_only=True)
    whole: bool = field(default=False, kw_only=True)
    brace: int = field(default=0, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class SharedBlock:
    """`config NAME { config NAME = EXPRESSION ... }`; comments as in `ModelBlock`."""

    name: Word
    statements: tuple[ConfigStatement | ConfigsStatement | UseStatement, ...]
    opening: str | None = None
    closing: tuple[str, ...] = ()
    trivia: Trivia = NO_TRIVIA
    span: Span | None = field(default=None, compare=False, repr=False)
    brace: int = field(default=0, compare=False, repr=False, kw_only=True)


Block = ModelBlock | LayoutBlock | SharedBlock
Statement = ModelStatement | LayoutStatement | EntryStatement


@dataclass(frozen=True, slots=True)
class Document:
    """A whole text: models, layouts, and shared `config` lines in any order; `closing` are comment
    lines at its end.
    """

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

    @property
    def shared(self) -> tuple[SharedBlock, ...]:
        """What layouts may `use`, in order."""
        return tuple(block for block in self.blocks if isinstance(block, SharedBlock))
