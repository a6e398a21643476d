"""Models with their short forms written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from reshard.language import tree
from reshard.language.blocks import Blocks
from reshard.language.conditions import conjunction
from reshard.language.expression import Expression, Variable, names
from reshard.language.faults import Faults, near
from reshard.language.substitute import renamed

Statement = TypeVar("Statement", bound=tree.Statement)


@dataclass(frozen=True, slots=True)
class Known:
    """The texts that a text may refer to, as they are written: None where there is none.

    Args:  model: the one that declares a model.  shared: the one that has a `config NAME { ... }`.
    """

    model: Callable[[str], Blocks | None] = lambda _: None
    shared: Callable[[str], Blocks | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A model, written out.  biases: of its tensors.  lets: names for expressions.
    uncut: by tensor, the axes that are whole on every rank, and have names of their own here.
    """

    block: tree.ModelBlock
    biases: Mapping[str, str]
    lets: Mapping[str, Expression]
    uncut: Mapping[str, tuple[str, ...]]

    def axes(self) -> dict[str, tuple[str, ...]]:
        """The axes of every tensor."""
        return {item.name.text: tuple(x.text for x in item.axes) for item in self.tensors()}

    def tensors(self) -> list[tree.TensorStatement]:
        """Its tensors."""
        return [x for x in self.block.statements if isinstance(x, tree.TensorStatement)]

    def condition(self, atom: str) -> Expression | None:
        """When a tensor is there."""
        return next((item.when for item in self.tensors() if item.name.text == atom), None)

    def names(self) -> set[str]:
        """Its axes, its tensors, and what its sizes and conditions ask for."""
        out: set[str] = set()
        for item in self.block.statements:
            if isinstance(item, tree.AxisStatement | tree.TensorStatement):
                said = item.size if isinstance(item, tree.AxisStatement) else item.when
                out.update([item.name.text], names(said) if said is not None else ())
        return out


class Models:
    """Writes out the models of one text."""

    def __init__(self, blocks: Blocks, known: Known, faults: Faults) -> None:
        self._blocks = blocks
        self._known = known
        self._faults = faults
        self._models: dict[str, WholeModel | None] = {}

    def model(self, name: str) -> WholeModel | None:
        """A model of this text, or one that it may refer to."""
        if name not in self._models:
            own = self._blocks.model(name)
            self._models[name] = None  # while a model is written out, it is none to be like
            other = None if own is not None else self._known.model(name)
            if own is not None:
                self._models[name] = self._written_out(own)
            elif other is not None and other is not self._blocks:
                self._models[name] = Models(other, self._known, self._faults).model(name)
        return self._models[name]

    def block(self, block: tree.ModelBlock) -> tree.ModelBlock:
        """A block of this text, written out; the second one of its name by itself."""
        is_first = self._blocks.model(block.name.text) is block
        found = self.model(block.name.text) if is_first else self._written_out(block)
        return block if found is None else found.block

    def _written_out(self, block: tree.ModelBlock) -> WholeModel:
        towers = [tree.TowerStatement(block.like)] if block.like is not None else []
        towers += [item for item in block.statements if isinstance(item, tree.TowerStatement)]
        out: list[tree.ModelStatement] = []
        biases: dict[str, str] = {}
        lets: dict[str, Expression] = {}
        uncut: dict[str, tuple[str, ...]] = {}
        for tower in towers:
            found = self._tower(block, tower)
            if found is not None:
                self._add_tower(out, found, tower)
                biases.update(found.biases)
                lets.update(found.lets)
                uncut.update(found.uncut)
        own: list[tree.ModelStatement] = []
        for item in block.statements:
            if isinstance(item, tree.LetStatement):
                lets[item.name.text] = with_lets(item.value, lets)
            elif isinstance(item, tree.AxisStatement):
                size = None if item.size is None else with_lets(item.size, lets)
                own.append(replace(item, size=size))
            elif isinstance(item, tree.TensorStatement):
                uncut.pop(item.name.text, None)
                own.append(replace(item, when=maybe_with_lets(item.when, lets)))
            elif isinstance(item, tree.TensorsStatement):
                own += _tensors(item, lets)
                if item.bias is not None:
                    biases[item.names[0].text] = item.bias.name.text
                for made in _tensors(item, lets):
                    uncut.pop(made.name.text, None)
                    if item.uncut:
                        uncut[made.name.text] = item.uncut
        own = _with_uncut_axes([*out, *own], own, uncut)
        said = {_declared(item) for item in own}
        out = [item for item in out if _declared(item) not in said]
        kinds = (tree.AxisStatement, tree.TensorStatement)
        statements = [x for kind in kinds for x in (*out, *own) if isinstance(x, kind)]
        if not towers:
            statements = [x for x in own if isinstance(x, kinds)]
        whole = replace(block, statements=tuple(begun(statements)), like=None)
        return WholeModel(whole, biases, lets, uncut)

    def _tower(self, block: tree.ModelBlock, tower: tree.TowerStatement) -> WholeModel | None:
        """The model of a tower, with the names that it has there."""
        name = tower.model.text
        found = None if name == block.name.text else self.model(name)
        if found is None:
            declared = self._blocks.names("model")
            is_circle = name in declared
            self._faults.add(
                "circular-layout" if is_circle else "unknown-model",
                f"model `{block.name.text}` is like itself"
                if is_circle
                else f"there is no model `{name}` that this could be like",
                tower.model.span,
                "leads back to it" if is_circle else "no such model",
                helps=[] if is_circle else near(name, declared),
            )
            return None
        return found if tower.alias is None else _model_as(found, tower.alias.text)

    def _add_tower(
        self, out: list[tree.ModelStatement], found: WholeModel, tower: tree.TowerStatement
    ) -> None:
        known = {_declared(item): item for item in out}
        for item in found.block.statements:
            other = known.get(_declared(item))
            if other is None:
                out.append(replace(item, trivia=tree.NO_TRIVIA))
            elif replace(other, trivia=tree.NO_TRIVIA) != replace(item, trivia=tree.NO_TRIVIA):
                self._faults.add(
                    "duplicate-name",
                    f"two models that are included here have {' '.join(_declared(item))}, each "
                    "another one",
                    tower.model.span,
                    "the second one",
                    helps=[
                        f"give its names a beginning of their own: `include {tower.model.text} as "
                        "vision`"
                    ],
                    once=tower.model.text,
                )


def _tensors(
    item: tree.TensorsStatement, lets: Mapping[str, Expression]
) -> list[tree.TensorStatement]:
    when = maybe_with_lets(item.when, lets)
    out = [tree.TensorStatement(word, item.axes, when, span=item.span) for word in item.names]
    out[0] = replace(out[0], trivia=item.trivia)
    if item.bias is not None:
        axes = item.axes[:-1] if item.bias.axes is None else item.bias.axes
        both = conjunction([when, maybe_with_lets(item.bias.when, lets)])
        out.append(tree.TensorStatement(item.bias.name, axes, both, span=item.span))
    return out


def uncut_name(axis: str) -> str:
    """What an axis is called in tensors that each rank has whole."""
    return f"{axis}_uncut"


def _with_uncut_axes(
    known: Sequence[tree.ModelStatement],
    own: Sequence[tree.ModelStatement],
    uncut: Mapping[str, tuple[str, ...]],
) -> list[tree.ModelStatement]:
    """The statements of a model, with axes of their own for those that are whole in some tensors.

    Args:  known: with those of the models that it is like.
    """
    axes = {x.name.text: x for x in known if isinstance(x, tree.AxisStatement)}
    out: list[tree.ModelStatement] = []
    added: set[str] = set()
    for item in own:
        if isinstance(item, tree.TensorStatement) and item.name.text in uncut:
            for axis in uncut[item.name.text]:
                name = uncut_name(axis)
                if axis in axes and name not in added | axes.keys():
                    word = tree.Word(name, axes[axis].name.span)
                    out.append(tree.AxisStatement(word, axes[axis].size, span=axes[axis].span))
                    added.add(name)
            changed = tuple(
                replace(word, text=uncut_name(word.text))
                if word.text in uncut[item.name.text]
                else word
                for word in item.axes
            )
            item = replace(item, axes=changed)
        out.append(item)
    return out


def _declared(item: tree.ModelStatement) -> tuple[str, str]:
    if isinstance(item, tree.AxisStatement):
        return "axis", item.name.text
    return "tensor", item.name.text if isinstance(item, tree.TensorStatement) else ""


def _model_as(model: WholeModel, alias: str) -> WholeModel:
    """A model whose names begin with that of a tower."""
    mine = model.names()

    def name(text: str) -> str:
        return f"{alias}_{text}" if text in mine else text

    def expression(item: Expression) -> Expression:
        return renamed(item, lambda x: Variable(name(x.name), x.span))

    def word(item: tree.Word) -> tree.Word:
        return replace(item, text=name(item.text))

    statements: list[tree.ModelStatement] = []
    for item in model.block.statements:
        if isinstance(item, tree.AxisStatement):
            size = None if item.size is None else expression(item.size)
            statements.append(replace(item, name=word(item.name), size=size))
        elif isinstance(item, tree.TensorStatement):
            when = None if item.when is None else expression(item.when)
            axes = tuple(map(word, item.axes))
            statements.append(replace(item, name=word(item.name), axes=axes, when=when))
    block = replace(model.block, statements=tuple(statements))
    biases = {name(one): name(other) for one, other in model.biases.items()}
    uncut = {name(atom): tuple(map(name, axes)) for atom, axes in model.uncut.items()}
    return WholeModel(block, biases, {}, uncut)


def begun(statements: Sequence[Statement]) -> Sequence[Statement]:
    """Statements of which the first has no blank line before it."""
    if not statements or not statements[0].trivia.blank:
        return statements
    first: Any = statements[0]
    return [replace(first, trivia=replace(first.trivia, blank=False)), *statements[1:]]


def with_lets(expression: Expression, lets: Mapping[str, Expression]) -> Expression:
    return renamed(expression, lambda x: lets.get(x.name, x)) if lets else expression


def maybe_with_lets(
    expression: Expression | None, lets: Mapping[str, Expression]
) -> Expression | None:
    return None if expression is None else with_lets(expression, lets)
