"""Short forms written out: after this step every layout says all that it means, and nothing that
reads a document knows of `like`, `whole`, `stack`, `under`, `use`, `fix`, `let`, and the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reshard.errors import Exit, ReshardError
from reshard.language import tree
from reshard.language.blocks import Blocks, ParsedBlocks, block_name
from reshard.language.conditions import constant
from reshard.language.expand_models import (
    Known,
    Models,
    WholeModel,
    begun,
    maybe_with_lets,
    uncut_name,
    with_lets,
)
from reshard.language.expand_rules import (
    atoms,
    bias_name,
    bias_of,
    simplified,
    stacked,
    tied,
    with_expressions,
    with_names,
    with_uncut,
    with_variables,
    without_mesh,
)
from reshard.language.expression import Expression, Value, Variable, names, to_text
from reshard.language.faults import Faults, near
from reshard.language.inherit import applying, inherited, spaced
from reshard.language.joined import joined
from reshard.language.words import listed

SHORT = (
    *(tree.TensorsStatement, tree.LetStatement, tree.TowerStatement, tree.ConfigsStatement),
    *(tree.UseStatement, tree.FixStatement, tree.StackStatement, tree.IncludeStatement),
    tree.UnderStatement,
)


def expand(document: tree.Document, known: Known) -> tree.Document:
    """A document with its short forms written out.

    Raises: no-bias, not-obeyed, circular-layout, unknown-layout, unknown-model, unknown-name,
            wrong-type.
    """
    own = {block.name.text for block in document.models}
    if not any(_is_short(block) for block in document.blocks) and not any(
        block.model is not None and block.model.text not in own for block in document.layouts
    ):
        return document
    faults = Faults()
    expander = Expander(ParsedBlocks(document), known, faults)
    blocks = tuple(expander.blocks(document))
    found = faults.sorted()
    if found:
        raise ReshardError(found, Exit.LAYOUT)
    return replace(document, blocks=blocks)


def _is_short(block: tree.Block) -> bool:
    return (
        isinstance(block, tree.SharedBlock)
        or block.like is not None
        or (isinstance(block, tree.LayoutBlock) and _has_ties(block))
        or any(
            isinstance(item, SHORT) or (isinstance(item, tree.RuleStatement) and item.bias)
            for item in block.statements
        )
    )


def _has_ties(block: tree.LayoutBlock) -> bool:
    """Whether a layout has ties that stand for rules: in files, readers and writers obey them."""
    kinds = {type(item) for item in block.statements}
    is_named = block.model is not None and tree.FileStatement not in kinds
    return is_named and tree.TieStatement in kinds


@dataclass(slots=True)
class _Own:
    """The statements of a block, written out, and what is to be done with all of them."""

    statements: list[tree.LayoutStatement] = field(default_factory=list)
    used: list[tree.ConfigStatement] = field(default_factory=list)
    fixed: list[tree.FixStatement] = field(default_factory=list)
    stacked: list[tree.Word] = field(default_factory=list)


class Expander:
    """Writes out the blocks of one text."""

    def __init__(self, blocks: Blocks, known: Known, faults: Faults) -> None:
        self._blocks = blocks
        self._known = known
        self._faults = faults
        self._models = Models(blocks, known, faults)
        self._layouts: dict[tuple[str, str], tree.LayoutBlock | None] = {}
        self._others: dict[str, Expander] = {}

    def blocks(self, document: tree.Document) -> Iterable[tree.ModelBlock | tree.LayoutBlock]:
        """Every model and layout, in order; of two of one name, each by itself."""
        for block in document.blocks:
            if isinstance(block, tree.ModelBlock):
                yield self._models.block(block)
            elif isinstance(block, tree.LayoutBlock):
                is_first = self._blocks.layout(*block_name(block)[1:]) is block
                found = self.layout(*block_name(block)[1:]) if is_first else None
                yield self._written_out(block) if found is None else found

    def model(self, name: str) -> tree.ModelBlock | None:
        """A model of this text or of another one."""
        found = self._models.model(name)
        return None if found is None else found.block

    def _other(self, model: str) -> Expander | None:
        """What writes out the layouts of a model of another text."""
        if model not in self._others:
            blocks = self._known.model(model)
            if blocks is None or blocks is self._blocks:
                return None
            self._others[model] = Expander(blocks, self._known, self._faults)
        return self._others[model]

    def layout(self, model: str, name: str) -> tree.LayoutBlock | None:
        """A layout of a model ("" for none), of this text or of another one."""
        key = model, name
        if key not in self._layouts:
            self._layouts[key] = None  # a layout that is like itself has none
            own = self._blocks.layout(model, name)
            if own is not None:
                self._layouts[key] = self._written_out(own)
            elif model and (other := self._other(model)) is not None:
                self._layouts[key] = other.layout(model, name)
        return self._layouts[key]

    def _written_out(self, block: tree.LayoutBlock) -> tree.LayoutBlock:
        model = None if block.model is None else self._models.model(block.model.text)
        base = None if block.like is None else self._base(block, block.like)
        own = _Own()
        for item in block.statements:
            self._gather(block, item, None, model, own)
        statements = [*_unsaid(own.used, own.statements), *own.statements]
        if block.like is None:
            statements = _in_order(block, own.used, own.statements)
        values = self._values(own.fixed)
        if base is not None:
            old = without_mesh(base.statements) if block.whole else list(base.statements)
            self._check_fixed(block, own.fixed, [*statements, *old])
            statements = _applied(statements, values)
            merged = inherited(_applied(old, values), statements)
            statements = spaced(applying(merged, _conditions(model), statements))
        elif own.fixed and block.like is None:
            self._check_fixed(block, own.fixed, statements)
            statements = _applied(statements, values)
        if _has_ties(replace(block, statements=tuple(statements))):
            statements = self._tied(block, statements)
        if base is not None or block.like is None:
            for axis in own.stacked:
                statements = self._stacked(block, axis, statements)
        lets = {} if model is None else model.lets
        when = maybe_with_lets(block.when, lets)
        return replace(
            block,
            statements=tuple(begun(statements)),
            when=base.when if when is None and base is not None else when,
            like=None,
            whole=False,
        )

    def _base(self, block: tree.LayoutBlock, like: tree.Word) -> tree.LayoutBlock | None:
        model, _, name = like.text.rpartition(".")
        model = model or ("" if block.model is None else block.model.text)
        if (model, name) == block_name(block)[
            1:
        ]:  # the one that ships, which this one is in place of
            other = self._other(model) if model else None
            found = None if other is None else other.layout(model, name)
        else:
            found = self.layout(model, name)
        if found is None:
            known = self._blocks.names("layout", model)
            is_circle = name in known
            of = f" of model `{model}`" if model else ""
            self._faults.add(
                "circular-layout" if is_circle else "unknown-layout",
                f"layout `{block.name.text}` is like itself"
                if is_circle
                else f"there is no layout `{name}`{of} that this could be like",
                like.span,
                "leads back to it" if is_circle else "no such layout",
                helps=[] if is_circle else near(name, known),
            )
        return found

    def _gather(
        self,
        block: tree.LayoutBlock,
        item: tree.LayoutStatement,
        prefix: tree.Word | None,
        model: WholeModel | None,
        own: _Own,
    ) -> None:
        """Add a statement to those of a block, written out."""
        lets = {} if model is None else model.lets
        if isinstance(item, tree.UnderStatement):
            whole = item.prefix if prefix is None else joined(prefix, item.prefix)
            for number, inner in enumerate(item.statements):
                if not number:
                    comments = (*item.trivia.comments, *inner.trivia.comments)
                    trivia = replace(inner.trivia, comments=comments, blank=item.trivia.blank)
                    inner = replace(inner, trivia=trivia)
                self._gather(block, inner, whole, model, own)
        elif isinstance(item, tree.RuleStatement):
            if prefix is not None:
                item = replace(item, pattern=joined(prefix, item.pattern))
            item = replace(item, when=maybe_with_lets(item.when, lets))
            found = [replace(item, bias=False)]
            if item.bias and (bias := self._bias(item, model)) is not None:
                found.append(bias)
            uncut = {} if model is None else model.uncut
            own.statements += (with_uncut(rule, uncut, uncut_name) for rule in found)
        elif isinstance(item, tree.ConfigsStatement):
            own.statements += _configs(item)
        elif isinstance(item, tree.UseStatement):
            own.used += self._used(item, ())
        elif isinstance(item, tree.FixStatement):
            own.fixed.append(item)
        elif isinstance(item, tree.StackStatement):
            own.stacked += item.axes
        elif isinstance(item, tree.IncludeStatement):
            own.statements += _unsaid_included(self._included(item), block, own.statements)
        else:
            own.statements.append(with_expressions(item, lambda x: with_lets(x, lets)))

    def _bias(
        self, rule: tree.RuleStatement, model: WholeModel | None
    ) -> tree.RuleStatement | None:
        name, stored = bias_name(rule.pattern), atoms(rule)
        biases = {} if model is None else model.biases
        without = [word.text for word in stored if word.text not in biases]
        if name is not None and stored and not without and model is not None:
            return bias_of(rule, name, biases, model.axes())
        if model is not None and any(word.text not in model.axes() for word in stored):
            return None  # the checks say that there is no such atom
        if name is None:
            headline = "the name of this tensor is not that of a weight"
            helps = ["write a rule for the bias: `" + '"NAME.bias" = ATOM[...]`']
        elif not stored:
            headline = "a rule that names no atom has no bias"
            helps = ["write a rule for the bias"]
        else:
            headline = f"{listed(without)} {'have' if len(without) > 1 else 'has'} no bias"
            helps = [f"say so in the model: `tensor {without[0]} [...] bias {without[0]}_bias`"]
        self._faults.add("no-bias", headline, rule.bias_span, "no bias", helps=helps)
        return None

    def _used(self, item: tree.UseStatement, above: tuple[str, ...]) -> list[tree.ConfigStatement]:
        """The lines that a `use` stands for."""
        out: list[tree.ConfigStatement] = []
        for word in item.names:
            found = self._blocks.shared(word.text)
            if found is None and (other := self._known.shared(word.text)) is not None:
                found = other.shared(word.text)
            if found is None or word.text in above:
                self._faults.add(
                    "unknown-name",
                    f"there is no `config {word.text} {{ ... }}`"
                    if found is None
                    else f"`config {word.text}` uses itself",
                    word.span,
                    "no such lines" if found is None else "leads back to it",
                    helps=near(word.text, self._blocks.names("config")),
                )
                continue
            for line in found.statements:
                if isinstance(line, tree.UseStatement):
                    out += self._used(line, (*above, word.text))
                else:
                    lines = [line] if isinstance(line, tree.ConfigStatement) else _configs(line)
                    out += (replace(x, trivia=tree.NO_TRIVIA) for x in lines)
        return out

    def _included(self, item: tree.IncludeStatement) -> list[tree.LayoutStatement]:
        """The statements of another model's layout, under names of their own."""
        model, _, name = item.layout.text.rpartition(".")
        found = self.layout(model, name)
        of_model = self._models.model(model)
        if found is None or of_model is None:
            self._faults.add(
                "unknown-layout",
                f"there is no layout `{item.layout.text}`",
                item.layout.span,
                "no such layout",
                helps=["write the model and its layout: `llama.hf`"],
            )
            return []
        alias = None if item.alias is None else item.alias.text
        mine = of_model.names()
        spelled = {x.name.text: x for x in found.statements if isinstance(x, tree.ConfigStatement)}
        mine |= spelled.keys()

        def rename(text: str) -> str:
            return f"{alias}_{text}" if alias is not None and text in mine else text

        def of_path(text: str) -> str:
            line = spelled.get(text)
            if item.path is None or (line is not None and text not in names(line.value)):
                return rename(text)
            return f"{item.path.text}.{text}"

        out: list[tree.LayoutStatement] = []
        for other in found.statements:
            if isinstance(other, tree.ConfigStatement):
                line = with_variables(other, of_path)
                out.append(replace(line, name=replace(line.name, text=rename(line.name.text))))
            elif isinstance(other, tree.RuleStatement):
                rule = with_names(other, rename)
                out.append(replace(rule, pattern=joined(item.prefix, rule.pattern)))
            elif isinstance(other, tree.PlaceStatement | tree.MeshStatement):
                out.append(with_names(other, rename))
            else:
                self._faults.add(
                    "not-obeyed",
                    f"layout `{item.layout.text}` has statements that cannot be included",
                    item.layout.span,
                    "more than rules, sizes, and places",
                    beside=[(other.span, "this one")],
                    helps=["write its rules here"],
                )
                break
        return out

    def _values(self, fixed: Sequence[tree.FixStatement]) -> dict[str, Value]:
        out: dict[str, Value] = {}
        for item in fixed:
            value = constant(item.value, {})
            if value is None:
                self._faults.add(
                    "wrong-type",
                    f"`fix {item.name.text}` states a value, and this is `{to_text(item.value)}`",
                    item.value.span,
                    "no value by itself",
                    helps=["write `true`, `false`, a number, or a string"],
                )
            else:
                out[item.name.text] = value
        return out

    def _check_fixed(
        self,
        block: tree.LayoutBlock,
        fixed: Sequence[tree.FixStatement],
        statements: Sequence[tree.LayoutStatement],
    ) -> None:
        asked = {
            name
            for item in statements
            if isinstance(item, tree.RuleStatement) and item.when is not None
            for name in names(item.when)
        }
        for item in fixed:
            if item.name.text not in asked:
                self._faults.add(
                    "not-obeyed",
                    f"no rule of layout `{block.name.text}` asks for `{item.name.text}`",
                    item.name.span,
                    "has no effect",
                    helps=near(item.name.text, asked) or ["remove the line"],
                )

    def _tied(
        self, block: tree.LayoutBlock, statements: Sequence[tree.LayoutStatement]
    ) -> list[tree.LayoutStatement]:
        rules = {x.pattern.text for x in statements if isinstance(x, tree.RuleStatement)}
        for item in statements:
            if isinstance(item, tree.TieStatement) and item.name.text not in rules:
                self._faults.add(
                    "not-obeyed",
                    f'no rule of layout `{block.name.text}` has the name "{item.name.text}"',
                    item.name.span,
                    "tied to nothing",
                    helps=near(item.name.text, rules),
                )
        return tied(statements)

    def _stacked(
        self, block: tree.LayoutBlock, axis: tree.Word, statements: list[tree.LayoutStatement]
    ) -> list[tree.LayoutStatement]:
        out: list[tree.LayoutStatement] = [
            stacked(item, axis) if isinstance(item, tree.RuleStatement) else item
            for item in statements
        ]
        if all(new is old for new, old in zip(out, statements, strict=True)):
            self._faults.add(
                "not-obeyed",
                f"no name of layout `{block.name.text}` has an index of `{axis.text}`",
                axis.span,
                "has no effect",
                helps=[
                    "remove the line, or write the index in the names: "
                    f'`"{axis.text}s.{{{axis.text}}}.weight"`'
                ],
            )
        return out


def _unsaid_included(
    included: Iterable[tree.LayoutStatement],
    block: tree.LayoutBlock,
    before: Iterable[tree.LayoutStatement],
) -> list[tree.LayoutStatement]:
    """What a layout includes, without axes of the mesh and sizes that it has itself."""
    meshes = [x for x in (*block.statements, *before) if isinstance(x, tree.MeshStatement)]
    known = {axis.name.text for item in meshes for axis in item.axes}
    said = {x.name.text for x in block.statements if isinstance(x, tree.ConfigStatement)}
    several = [x for x in block.statements if isinstance(x, tree.ConfigsStatement)]
    said.update(word.text for item in several for word in item.names)
    out: list[tree.LayoutStatement] = []
    for item in included:
        if isinstance(item, tree.MeshStatement):
            axes = tuple(axis for axis in item.axes if axis.name.text not in known)
            out += [replace(item, axes=axes)] if axes else []
        elif not isinstance(item, tree.ConfigStatement) or item.name.text not in said:
            out.append(item)
    return out


def _conditions(model: WholeModel | None) -> Callable[[str], Expression | None]:
    if model is None:
        return lambda _: None
    when = {item.name.text: item.when for item in model.tensors()}
    return when.get


def _applied(
    statements: Sequence[tree.LayoutStatement], values: Mapping[str, Value]
) -> list[tree.LayoutStatement]:
    """Statements with the values of what is fixed in the conditions of rules; without those that
    never apply.
    """
    out: list[tree.LayoutStatement] = []
    for item in statements:
        if isinstance(item, tree.RuleStatement) and item.when is not None:
            rule = simplified(item, values)
            is_met = constant(rule.when, {})
            if is_met is False:
                continue
            item = replace(rule, when=None) if is_met is True else rule
        out.append(item)
    return out


def _unsaid(
    used: Sequence[tree.ConfigStatement], statements: Sequence[tree.LayoutStatement]
) -> list[tree.ConfigStatement]:
    """The shared lines that a layout does not say otherwise; of two about one size, the later."""
    said = {item.name.text for item in statements if isinstance(item, tree.ConfigStatement)}
    last = {item.name.text: item for item in used if item.name.text not in said}
    return list(last.values())


def _in_order(
    block: tree.LayoutBlock,
    used: Sequence[tree.ConfigStatement],
    statements: Sequence[tree.LayoutStatement],
) -> list[tree.LayoutStatement]:
    """The statements, the shared lines in front of the layout's own `config` lines."""
    lines = _unsaid(used, statements)
    if not lines:
        return list(statements)
    kinds = (tree.ConfigStatement, tree.RuleStatement)
    places = (at for at, item in enumerate(statements) if isinstance(item, kinds))
    at = next(places, len(statements))
    first = next(x.trivia for x in block.statements if isinstance(x, tree.UseStatement))
    lines[0] = replace(lines[0], trivia=replace(first, remark=None))
    return [*statements[:at], *lines, *statements[at:]]


def _configs(item: tree.ConfigsStatement) -> list[tree.ConfigStatement]:
    out = [
        tree.ConfigStatement(
            word,
            Variable(word.text, word.span) if item.value is None else item.value,
            span=word.span,
        )
        for word in item.names
    ]
    out[0] = replace(out[0], trivia=item.trivia)
    return out
