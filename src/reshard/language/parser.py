"""From text to tree: lark reads, this builds and normalizes. Meaning is checked later."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, cast

from reshard.errors import Diagnostic, Exit, Label, ReshardError, Source, Span, layout_error
from reshard.language import grammar, tree
from reshard.language.comments import with_comments
from reshard.language.expression import Expression
from reshard.language.library import MAX_TEXT
from reshard.language.parse_terms import TermBuilder
from reshard.language.recover import without_fault
from reshard.language.syntax import syntax_fault

if TYPE_CHECKING:
    from lark import Token, Tree

    Node = Tree[Token]

MAX_FAULTS = 20
"""Faults of one text that are looked for."""

MAX_BLOCKS = 1000
"""Models and layouts of one text, which refer to each other."""

_BLOCK = re.compile(r"(?:model|layout)[ \t\r\n\f]")


def parse(text: str, name: str = "<text>") -> tree.Document:
    """The tree of a UCL text.

    Args:  name: of the file, for messages.
    Raises: syntax.
    """
    from lark.exceptions import UnexpectedInput

    source = Source(name, text)
    _refuse_large(source)
    found: list[Diagnostic] = []
    left: str | None = text
    while left is not None and len(found) < MAX_FAULTS:
        try:
            document = _Builder(source).document(grammar.parser().parse(left))
        except UnexpectedInput as error:
            fault = syntax_fault(error, source, left)
        except ReshardError as error:
            fault = error.diagnostics[0]
        else:
            if not found:
                return with_comments(document)
            break
        if all(_start(fault) != _start(other) for other in found):
            found.append(fault)
        left = without_fault(left, fault)
    raise ReshardError(sorted(found, key=_start), Exit.LAYOUT)


def _start(fault: Diagnostic) -> int:
    return fault.primary.span.start if fault.primary else 0


def _refuse_large(source: Source) -> None:
    """Refuse what nobody writes, and would take long to read."""
    if len(source.text) > MAX_TEXT:
        raise layout_error(
            "syntax",
            f"a text has {len(source.text)} characters; at most {MAX_TEXT} are read",
            primary=Label(Span.of(source, 0, 1), "the text begins here"),
        )
    blocks = len(_BLOCK.findall(source.text))
    if blocks > MAX_BLOCKS:
        raise layout_error(
            "syntax",
            f"a text has {blocks} models and layouts; at most {MAX_BLOCKS} are read",
            primary=Label(Span.of(source, 0, 1), "the text begins here"),
        )


class _Builder(TermBuilder):
    """Builds the tree of one source; a method is named after the grammar rule that it reads."""

    def document(self, node: Node) -> tree.Document:
        blocks = tuple(self._block(child) for child in self._trees(node))
        return tree.Document(blocks, (), self._source)

    # ---- blocks --------------------------------------------------------------------------------

    def _block(self, node: Node) -> tree.Block:
        if node.data == "model":
            return self._model(node)
        return self._layout(node) if node.data == "layout" else self._shared(node)

    def _shared(self, node: Node) -> tree.SharedBlock:
        name, brace, *lines = node.children
        statements = tuple(
            self._use(item) if item.data == "use" else self._config(item)
            for item in cast("list[Node]", lines)
        )
        at = self._span(brace).start
        return tree.SharedBlock(self._word(name), statements, span=self._span(node), brace=at)

    def _model(self, node: Node) -> tree.ModelBlock:
        name, like, brace, *statements = node.children
        return tree.ModelBlock(
            self._word(name),
            tuple(self._model_statement(item) for item in cast("list[Node]", statements)),
            span=self._span(node),
            like=self._perhaps(like),
            brace=self._span(brace).start,
        )

    def _layout(self, node: Node) -> tree.LayoutBlock:
        name, model, like, whole, when, brace, *statements = node.children
        return tree.LayoutBlock(
            self._word(name),
            self._perhaps(model),
            tuple(self._statement(item) for item in cast("list[Node]", statements)),
            when=self._maybe(when),
            span=self._span(node),
            like=self._perhaps(like),
            whole=whole is not None,
            brace=self._span(brace).start,
        )

    def _model_statement(self, node: Node) -> tree.ModelStatement:
        span = self._span(node)
        if node.data == "axis":
            return self._axis(node)
        if node.data == "let":
            value = self._expression(cast("Node", node.children[1]))
            return tree.LetStatement(self._word(node.children[0]), value, span=span)
        if node.data == "tower":
            model, alias = node.children
            return tree.TowerStatement(self._word(model), self._perhaps(alias), span=span)
        return self._tensor(node)

    def _axis(self, node: Node) -> tree.AxisStatement:
        name, size = node.children
        return tree.AxisStatement(self._word(name), self._maybe(size), span=self._span(node))

    def _tensor(self, node: Node) -> tree.TensorStatement | tree.TensorsStatement:
        names, axes, when, bias = cast("list[Node | None]", node.children)
        assert names is not None
        span, condition = self._span(node), self._maybe(when)
        words = self._words(names)
        listed: tuple[tree.Word, ...] = ()
        uncut: list[str] = []
        for item in () if axes is None else self._trees(axes):
            word = self._word(item.children[0])
            listed += (word,)
            uncut += [word.text] if item.children[1] is not None else []
        if bias is None and len(words) == 1 and not uncut:
            return tree.TensorStatement(words[0], listed, condition, span=span)
        if bias is not None and len(words) > 1:
            raise self._fault(
                "one bias stands behind several tensors",
                "the bias of which of them?",
                bias,
                "write a line for each tensor that has one: `tensor wq [h, d] bias bq`",
            )
        return tree.TensorsStatement(
            words, listed, condition, self._bias(bias), tuple(uncut), span=span
        )

    def _bias(self, node: Node | None) -> tree.Bias | None:
        if node is None:
            return None
        name, own, when = node.children
        axes: tuple[tree.Word, ...] | None = None
        if own is not None:
            inside = cast("Node", own).children[0]
            axes = () if inside is None else self._words(cast("Node", inside))
        return tree.Bias(self._word(name), axes, self._maybe(when))

    # ---- statements of layouts -----------------------------------------------------------------

    def _statement(self, node: Node) -> tree.LayoutStatement:
        span = self._span(node)
        children = node.children
        if node.data == "mesh":
            return tree.MeshStatement(
                tuple(
                    tree.MeshAxis(self._word(item.children[0]), self._maybe(item.children[1]))
                    for item in self._trees(node)
                ),
                span=span,
            )
        if node.data == "config":
            return self._config(node)
        if node.data == "use":
            return self._use(node)
        if node.data == "fix":
            value = self._expression(cast("Node", children[1]))
            return tree.FixStatement(self._word(children[0]), value, span=span)
        if node.data == "stack":
            return tree.StackStatement(self._words(cast("Node", children[0])), span=span)
        if node.data == "under":
            return self._under(node)
        if node.data == "include":
            layout, alias, prefix, path = children
            return tree.IncludeStatement(
                self._word(layout),
                self._string(prefix),
                self._perhaps(alias),
                self._perhaps(path),
                span=span,
            )
        if node.data == "place":
            axes, over, split, padding, truncation = cast("list[Node | None]", children)
            assert axes is not None
            first = over or padding or truncation
            if first is None:
                raise self._fault(
                    "this `place` says nothing", "how do they lie?", node, "write `over MESH-AXIS`"
                )
            words = () if over is None else self._words(over)
            placement = self._placement(words, split, padding, truncation, first)
            return tree.PlaceStatement(self._words(axes), placement, span=span)
        if node.data == "partition":
            return tree.PartitionStatement(
                self._words(cast("Node", children[0])),
                self._word(children[1]),
                cast("tree.PartitionKind", str(children[2])),
                self._maybe(children[4]),
                self._maybe(children[3]),
                self._maybe(children[5]),
                children[6] is not None,
                span=span,
            )
        if node.data == "file":
            names, optional, brace, *entries = children
            return tree.FileStatement(
                self._strings(cast("Node", names)),
                tuple(self._entry(item) for item in cast("list[Node]", entries)),
                optional is not None,
                span=span,
                brace=self._span(brace).start,
            )
        if node.data == "tie":
            return tree.TieStatement(
                self._string(children[0]),
                self._string(children[1]),
                self._maybe(children[2]),
                span=span,
            )
        if node.data == "leave":
            why = self._string(children[1])
            return tree.LeaveStatement(self._string(children[0]), why, span=span)
        if node.data == "called":
            return tree.NamesStatement(self._word(children[0]), span=span)
        if node.data == "ordering":
            *_, when = children
            return tree.OrderStatement(self._strings(node), self._maybe(when), span=span)
        if node.data == "wrapper":
            return tree.WrapperStatement(self._strings(node), span=span)
        return self._rule(node)

    def _config(self, node: Node) -> tree.ConfigStatement | tree.ConfigsStatement:
        listed, value = self._words(cast("Node", node.children[0])), self._maybe(node.children[1])
        if value is None or len(listed) > 1:
            return tree.ConfigsStatement(listed, value, span=self._span(node))
        return tree.ConfigStatement(listed[0], value, span=self._span(node))

    def _use(self, node: Node) -> tree.UseStatement:
        return tree.UseStatement(self._words(cast("Node", node.children[0])), span=self._span(node))

    def _under(self, node: Node, depth: int = 0) -> tree.UnderStatement:
        self._check_depth(node, depth)
        prefix, brace, *rules = node.children
        return tree.UnderStatement(
            self._string(prefix),
            tuple(
                self._under(item, depth + 1) if item.data == "under" else self._rule(item)
                for item in cast("list[Node]", rules)
            ),
            span=self._span(node),
            brace=self._span(brace).start,
        )

    def _entry(self, node: Node) -> tree.EntryStatement:
        span, role = self._span(node), cast("tree.Role", str(node.data))
        children = node.children
        if role == "leave":
            place, why = map(self._string, children)
            return tree.EntryStatement(role, (), (place,), because=why, span=span)
        names: tuple[tree.Word, ...] = ()
        if role == "state":
            names = self._words(cast("Node", children[0]))
        elif role == "run":
            names = (self._word(children[0]),)
        value: Expression | None = None
        if role == "fill":
            is_none = self._is_token(children[1]) and str(children[1]) == "none"
            value = None if is_none else self._maybe(children[1])
            children = [children[0], children[2]]
        *_, places, optional = children
        strings = self._strings(cast("Node", places))
        return tree.EntryStatement(
            role, names, strings, optional is not None, value=value, span=span
        )

    def _rule(self, node: Node) -> tree.RuleStatement:
        pattern, atom, dims, *tails = node.children
        terms: list[tree.TermTree] = []
        rest: Span | None = None
        for item in [] if dims is None else cast("Node", dims).children:
            if self._is_token(item):
                rest = self._span(item)
            else:
                terms.append(self._term(cast("Node", item), 0))
        said: dict[str, Node] = {}
        for tail in cast("list[Node]", tails):
            if tail.data in said:
                what = {
                    "averaged": "averaged over",
                    "stage": "on",
                    "condition": "when",
                    "with_bias": "with bias",
                }
                word = what.get(str(tail.data), str(tail.data))
                raise self._fault(
                    f"`{word}` is said twice in one rule",
                    "the second one",
                    tail,
                    "leave one of them out; what is on both stages has two rules"
                    if word == "on"
                    else "leave one of them out",
                )
            said[str(tail.data)] = tail
        stage = said.get("stage")
        averaged = said.get("averaged")
        condition = said.get("condition")
        return tree.RuleStatement(
            tree.Word(str(pattern)[1:-1], self._span(pattern)),
            self._word(atom) if atom is not None else None,
            tuple(terms),
            rest is not None,
            cast("Literal['first', 'last']", str(stage.children[0])) if stage else None,
            self._words(cast("Node", averaged.children[0])) if averaged else (),
            "optional" in said,
            self._maybe(condition.children[0]) if condition else None,
            span=self._span(node),
            stage_span=self._span(stage) if stage else None,
            rest_span=rest,
            bias="with_bias" in said,
            bias_span=self._span(said["with_bias"]) if "with_bias" in said else None,
        )
