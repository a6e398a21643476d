"""A compiled layout: what the planner reads, and the tree that it was made of, to show it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from reshard.algebra.split import SplitRule
from reshard.algebra.term import Term
from reshard.errors import Span
from reshard.language.expression import Expression, known_value
from reshard.language.pattern import Match, NamePattern
from reshard.language.pattern_index import PatternIndex
from reshard.language.place import FileName, Place
from reshard.language.tree import Document, ModelBlock

Role = Literal[
    "state", "states", "slices", "number", "named", "order", "run", "fill", "keep", "leave"
]


@dataclass(frozen=True, slots=True)
class Split:
    """How an axis lies along mesh axes.

    Args:  over: mesh axes, the first one major; () for an axis that is not cut.
           rule, sizes: how the blocks are sized (`algebra.split`).
           pad_to: the stored length is rounded up to a multiple of this; None for no padding.
           truncated_to: the logical length; stored elements behind it are padding. None if whole.
    """

    over: tuple[str, ...] = ()
    rule: SplitRule = "even"
    sizes: tuple[int, ...] = ()
    pad_to: Expression | None = None
    truncated_to: Expression | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis as one rule (layout without a model) or one model declares it.

    Args:  size: its logical length; None when the stored shapes tell.
    """

    name: str
    size: Expression | None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """An atom of a model: its axes in order, and when it exists.

    Args:  when: in which models.
           only: at which indices of axis `along`, in an expression that names it: the experts of
                 the layers that have some. None where it is there at all of them.
    """

    name: str
    axes: tuple[str, ...]
    when: Expression | None
    only: Expression | None = None
    along: str = ""
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Model:
    """Named axes and the atoms over them."""

    name: str
    axes: Mapping[str, Axis]
    tensors: Mapping[str, ModelTensor]
    block: ModelBlock | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """What the tensors of one name pattern hold.

    Args:  pattern: the stored names.
           atom: the model's atom when the whole tensor is one (`wq[kv q d, h]`); None when the
                 labels of a sum name the atoms, and in a layout without a model.
           dims: one term per dimension. `rest`: more dimensions follow (`...`), each an axis of its
                 own that is not cut.
           axes: the axes of its shape, in a layout without a model (anonymous ones are named `_0`,
                 `_1`, ... by order of appearance); none with a model, which has them.
           splits: how these axes lie: as the rule says, else as the layout's `places` say.
           averaged_over: mesh axes whose copies are averaged; other copies must agree bit for bit.
           stage: only on the first or last pipeline stage.
           when: only where this holds; the conditions of the atoms that it stores are part of it.
           optional: may match nothing.
           only, along: at which indices its atoms are (`ModelTensor`).
    """

    pattern: NamePattern
    atom: str | None
    dims: tuple[Term, ...]
    rest: bool
    axes: Mapping[str, Axis]
    splits: Mapping[str, Split]
    averaged_over: tuple[str, ...] = ()
    stage: Literal["first", "last"] | None = None
    when: Expression | None = None
    optional: bool = False
    only: Expression | None = None
    along: str = ""
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PartitionRule:
    """How data-parallel ranks share the flat elements of some state kinds.

    Args:  states: state kinds; over: the mesh axis.
           kind: "buffer" (ZeRO-1/2), "each" (ZeRO-3), "balanced" (nanotron), "rows" (FSDP2), or
           "buckets" (Megatron).
           align: a buffer's length is a multiple of this.  size: elements that fill a bucket.
           starts: each tensor begins at a multiple of this.
           is_round_robin: whether the tensors lie in a buffer as the ranks take them in turn.
           is_dtensor: whether each rank's rows are a DTensor of torch, which says the mesh itself.
    """

    states: tuple[str, ...]
    over: str
    kind: Literal["buffer", "each", "balanced", "rows", "buckets"]
    align: Expression | None
    size: Expression | None = None
    starts: Expression | None = None
    is_round_robin: bool = False
    is_dtensor: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies at a place of a file.

    Args:  role: one or more named `state`s of tensors, or `states` that a hole names; `slices`,
           which part of the whole the tensor of the file is; `number`, the parameters of each
           group by number, or `named`, by name, or the name of each number; `order`, the names and
           shapes of what lies in one buffer; `run`, a fact of training; `keep`, what only the
           writer understands; `fill`, a number that follows from the mesh; `leave`, what is not
           carried.
           names: of the states, or of the fact.  places: alternatives; the first that is there
           counts.  because: why it is left out.  value: what is filled in.
    """

    role: Role
    names: tuple[str, ...]
    places: tuple[Place, ...]
    optional: bool
    because: str = ""
    value: Expression | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FileRule:
    """The files of one kind.

    Args:  names: alternatives.  entries: in order; what two of them name belongs to the first.
           optional: it may be missing.
    """

    names: tuple[FileName, ...]
    entries: tuple[Entry, ...]
    optional: bool
    span: Span | None = field(default=None, compare=False, repr=False)


LEAVES = ("weight", "bias")
"""The parameters that a module registers, in this order, unless an order says otherwise."""


_Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParameterOrder:
    """The order in which a module registers its parameters: keys at each level of their names, as
    they first appear; indices by number.

    Args:  names: with `{layer}` and the like.  when: for which models.
    """

    names: tuple[str, ...]
    when: Expression | None
    _known: dict[
        tuple[bool, tuple[int, ...], int, str], tuple[tuple[int, ...], tuple[int, ...]]
    ] = field(default_factory=dict, init=False, compare=False, repr=False)

    def key(self, name: str) -> tuple[int, ...]:
        """What a name is sorted by; names that are not listed come last."""
        out: list[int] = []
        listed = tuple(range(len(self.names)))
        for depth, part in enumerate(name.split(".")):
            step = self._known.get((False, listed, depth, part))
            if step is None:
                step = self._known[False, listed, depth, part] = self._step(listed, depth, part)
            out += step[0]
            listed = step[1]
        return tuple(out)

    def _step(self, listed: _Numbers, depth: int, part: str) -> tuple[_Numbers, _Numbers]:
        """What one part of a name adds to its key, and the names that are like it up to there.

        Args:  listed: the names, by number, that are like those before it.
        """
        parts = {number: self.names[number].split(".") for number in listed}
        parts = {number: of for number, of in parts.items() if len(of) > depth}
        level = list(dict.fromkeys(of[depth] for of in parts.values()))
        slot = next((item for item in level if "{" in item and _is(part, item)), "")
        alike = tuple(number for number, of in parts.items() if of[depth] == (slot or part))
        if slot:  # an index, perhaps behind a word: `weight{e}`
            first = next(at for at, item in enumerate(level) if "{" in item)
            stem = slot.partition("{")[0]
            if not stem:
                return (int(part),), alike
            return (first, int(part.removeprefix(stem)), level.index(slot)), alike
        ordered = [*level, *(x for x in LEAVES if x not in level)]
        return (ordered.index(part) if part in ordered else len(ordered),), alike

    def has(self, name: str) -> bool:
        """Whether a name is of a parameter that is listed, or of the weight or bias of one."""
        parts = name.split(".")
        listed = tuple(range(len(self.names)))
        for depth, part in enumerate(parts):
            step = self._known.get((True, listed, depth, part))
            if step is None:
                step = self._known[True, listed, depth, part] = self._like(listed, depth, part)
            whole, listed = step
            if whole and (*parts[depth + 1 :],) in ((), *((x,) for x in LEAVES)):
                return True
        return False

    def _like(self, listed: _Numbers, depth: int, part: str) -> tuple[_Numbers, _Numbers]:
        """The names that end with one part of a name, and those that are like it up to there."""
        parts = {number: self.names[number].split(".") for number in listed}
        alike = tuple(n for n, of in parts.items() if len(of) > depth and _is(part, of[depth]))
        return tuple(n for n in alike if len(parts[n]) == depth + 1), alike


def _is(part: str, known: str) -> bool:
    """Whether a part of a name is one that is listed, which may hold an index."""
    stem, index, _ = known.partition("{")
    return part == known or bool(index and part.startswith(stem) and part[len(stem) :].isdecimal())


@dataclass(frozen=True, slots=True)
class Tie:
    """Another name of a tensor.  when: in which models."""

    alias: str
    name: str
    when: Expression | None

    def holds(self, config: Mapping[str, object]) -> bool:
        """Whether a configuration says that it is so."""
        return self.when is None or known_value(self.when, config) is True


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Names of tensors that are no parameters, and why."""

    pattern: NamePattern
    because: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout, checked.

    Args:  when: of which checkpoints it is; what a configuration does not tell may be so.
           mesh: axis name -> size as an expression, None when the checkpoint or the target tells.
           places: by axis, how it lies along the mesh wherever it appears.
           config: size name -> how this framework spells it.
           files: what lies where, of checkpoints that do not describe themselves.
           ties: two names of one tensor.  left_out: what is no parameter.
           wrappers: parts of names that wrappers of the module add.
           orders: of the module's parameters.
           names: the layout of their model that names tensors so; "" where the source's will do.
           document: the tree that it is of.
    """

    name: str
    model: Model | None
    mesh: Mapping[str, Expression | None]
    rules: tuple[Rule, ...]
    places: Mapping[str, Split]
    partitions: tuple[PartitionRule, ...]
    config: Mapping[str, Expression]
    when: Expression | None = None
    span: Span | None = field(default=None, compare=False, repr=False)
    files: tuple[FileRule, ...] = ()
    ties: tuple[Tie, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    wrappers: tuple[str, ...] = ()
    orders: tuple[ParameterOrder, ...] = ()
    names: str = ""
    document: Document | None = field(default=None, compare=False, repr=False)
    _index: list[PatternIndex] = field(default_factory=list, init=False, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The UCL text that it was compiled from."""
        return "" if self.document is None else self.document.source.text

    def leaves_out(self, name: str) -> LeftOut | None:
        """What says that tensors of this name are no parameters; None where nothing does."""
        return next((item for item in self.left_out if item.pattern.match(name)), None)

    def matches(self, name: str) -> Iterator[tuple[int, Match]]:
        """The rules whose patterns match a name, by index and in order; their conditions are not
        looked at.
        """
        if not self._index:
            self._index.append(PatternIndex([rule.pattern for rule in self.rules]))
        return self._index[0].matches(name)
