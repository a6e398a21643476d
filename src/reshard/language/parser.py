"""From text to tree: lark reads, this builds and normalizes. Meaning is checked later."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, cast

from reshard.algebra.split import SplitRule
from reshard.errors import Diagnostic, Exit, Label, ReshardError, Source, Span, layout_error
from reshard.language import expression as ex
from reshard.language import grammar, tree
from reshard.language.comments import with_comments
from reshard.language.pattern import unescaped
from reshard.language.recover import without_fault
from reshard.language.syntax import syntax_fault

if TYPE_CHECKING:
    from lark import Token, Tree

    Node = Tree[Token]

RESERVED = frozenset(
    {
        "and",
        "as",
        "averaged",
        "false",
        "local",
        "not",
        "on",
        "optional",
        "or",
        "over",
        "padded",
        "true",
        "truncated",
        "when",
    }
)
"""Words that no axis, tensor, model, layout, or size may be called."""

MAX_DEPTH = 100
"""Levels of nesting of one term or expression."""

MAX_LENGTH = 1 << 22
"""Characters of one text."""

MAX_FAULTS = 20
"""Faults of one text that are looked for."""

MAX_BLOCKS = 1000
"""Models and layouts of one text, which refer to each other."""

_BLOCK = re.compile(r"(?:model|layout)[ \t\r\n\f]")

MAX_INTEGER = 2**63 - 1


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
        if fault not in found:
            found.append(fault)
        left = without_fault(left, fault)
    raise ReshardError(sorted(found, key=_start), Exit.LAYOUT)


def _start(fault: Diagnostic) -> int:
    return fault.primary.span.start if fault.primary else 0


def _refuse_large(source: Source) -> None:
    """Refuse what nobody writes, and would take long to read."""
    if len(source.text) > MAX_LENGTH:
        raise layout_error(
            "syntax",
            f"a text has {len(source.text)} characters; at most {MAX_LENGTH} are read",
            primary=Label(Span.of(source, 0, 1), "the text begins here"),
        )
    blocks = len(_BLOCK.findall(source.text))
    if blocks > MAX_BLOCKS:
        raise layout_error(
            "syntax",
            f"a text has {blocks} models and layouts; at most {MAX_BLOCKS} are read",
            primary=Label(Span.of(source, 0, 1), "the text begins here"),
        )


class _Builder:
    """Builds the tree of one source; a method is named after the grammar rule that it reads."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def document(self, node: Node) -> tree.Document:
        blocks = tuple(
            self._model(child) if child.data == "model" else self._layout(child)
            for child in self._trees(node)
        )
        return tree.Document(blocks, (), self._source)

    # ---- blocks --------------------------------------------------------------------------------

    def _model(self, node: Node) -> tree.ModelBlock:
        name, _brace, *statements = node.children
        return tree.ModelBlock(
            self._word(name),
            tuple(
                self._axis(item) if item.data == "axis" else self._tensor(item)
                for item in cast("list[Node]", statements)
            ),
            span=self._span(node),
        )

    def _layout(self, node: Node) -> tree.LayoutBlock:
        name, model, when, _brace, *statements = node.children
        return tree.LayoutBlock(
            self._word(name),
            self._word(model) if model is not None else None,
            tuple(self._statement(item) for item in cast("list[Node]", statements)),
            when=self._maybe(when),
            span=self._span(node),
        )

    def _axis(self, node: Node) -> tree.AxisStatement:
        name, size = node.children
        return tree.AxisStatement(self._word(name), self._maybe(size), span=self._span(node))

    def _tensor(self, node: Node) -> tree.TensorStatement:
        name, axes, when = node.children
        words = () if axes is None else self._words(cast("Node", axes))
        return tree.TensorStatement(
            self._word(name), words, self._maybe(when), span=self._span(node)
        )

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
            value = self._expression(cast("Node", children[1]))
            return tree.ConfigStatement(self._word(children[0]), value, span=span)
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
                cast("Literal['buffer', 'each', 'rows']", str(children[2])),
                self._maybe(children[3]),
                span=span,
            )
        if node.data == "file":
            names, optional, _brace, *entries = children
            return tree.FileStatement(
                self._strings(cast("Node", names)),
                tuple(self._entry(item) for item in cast("list[Node]", entries)),
                optional is not None,
                span=span,
            )
        if node.data == "tie":
            return tree.TieStatement(
                self._string(children[0]), self._string(children[1]), span=span
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
        value: ex.Expression | None = None
        if role == "fill":
            value = self._maybe(children[1])
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
                what = {"averaged": "averaged over", "stage": "on", "condition": "when"}
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
        )

    # ---- terms ---------------------------------------------------------------------------------

    def _term(self, node: Node, depth: int) -> tree.TermTree:
        self._check_depth(node, depth)
        factors: list[tree.TermTree] = []
        items = self._trees(node)
        for item in items:
            factor = self._factor(item, depth)
            if item.data == "group" and len(items) > 1 and not isinstance(factor, tree.SumTerm):
                said = " ".join(
                    self._source.text[self._span(node).start : self._span(node).end].split()
                )
                whole = said.replace("(", "").replace(")", "")
                raise self._fault(
                    "parentheses inside a dimension hold a sum",
                    "no sum",
                    item,
                    f"write `{whole}` for one dimension, or put a comma between two: "
                    f"`{said.replace(' (', ', (', 1)}`",
                )
            factors += factor.factors if isinstance(factor, tree.ProductTerm) else (factor,)
        return (
            factors[0] if len(factors) == 1 else tree.ProductTerm(tuple(factors), self._span(node))
        )

    def _factor(self, node: Node, depth: int) -> tree.TermTree:
        if node.data == "unit":
            if str(node.children[0]).lstrip("0") != "1":
                raise self._fault(
                    "the only number that can be a dimension is `1`",
                    "not 1",
                    node,
                    "name the axis, `h`; a layout without a model can state its size: "
                    f"`h:{node.children[0]}`",
                )
            return tree.ProductTerm((), self._span(node))
        if node.data == "group":
            parts: list[tree.SumPart] = []
            for item in self._trees(node):
                parts += self._part(item, depth + 1)
            if len(parts) == 1 and parts[0].label is None:
                return parts[0].term
            return tree.SumTerm(tuple(parts), self._span(node))
        return self._factor_axis(node)

    def _part(self, node: Node, depth: int) -> Iterable[tree.SumPart]:
        if node.data == "labelled":
            label, inner = node.children
            term = self._term(cast("Node", inner), depth)
            return (tree.SumPart(self._word(label), term, self._span(node)),)
        term = self._term(cast("Node", node.children[0]), depth)
        if isinstance(term, tree.SumTerm):
            return term.parts
        return (tree.SumPart(None, term, self._span(node)),)

    def _factor_axis(self, node: Node) -> tree.AxisTerm:
        name, size, over, split, padding, truncation = cast("list[Node | None]", node.children)
        placement = None
        if over or padding or truncation:
            words = self._words(over) if over else ()
            first = next(item for item in (over, padding, truncation) if item)
            placement = self._placement(words, split, padding, truncation, first)
        return tree.AxisTerm(
            self._word(name),
            self._expression(cast("Node", size.children[0])) if size else None,
            placement,
            self._span(node),
        )

    def _placement(
        self,
        over: tuple[tree.Word, ...],
        split: Node | None,
        padding: Node | None,
        truncation: Node | None,
        first: Node,
    ) -> tree.Placement:
        rule: SplitRule = "even"
        sizes: tuple[int, ...] = ()
        if split is not None and split.data == "sizes":
            rule, sizes = "sizes", tuple(self._integer(item) for item in split.children)
        elif split is not None:
            rule = "chunk" if str(split.children[0]) == "chunk" else "balanced"
        last = next(item for item in (truncation, padding, split, first) if item is not None)
        return tree.Placement(
            over,
            rule,
            sizes,
            self._maybe(padding.children[0]) if padding else None,
            self._maybe(truncation.children[0]) if truncation else None,
            Span.of(self._source, self._span(first).start, self._span(last).end),
        )

    # ---- expressions ---------------------------------------------------------------------------

    def _maybe(self, node: object) -> ex.Expression | None:
        return None if node is None else self._expression(cast("Node", node))

    def _expression(self, node: Node, depth: int = 0) -> ex.Expression:
        self._check_depth(node, depth)
        span = self._span(node)
        if self._is_token(node):
            return ex.Integer(self._integer(node), span)
        children = cast("list[Node]", node.children)
        if node.data == "binary":
            left = self._expression(children[0], depth + 1)
            return ex.Binary(str(children[1]), left, self._expression(children[2], depth + 1), span)
        if node.data == "unary":
            return ex.Unary(str(children[0]), self._expression(children[1], depth + 1), span)
        token = str(children[0])
        if node.data == "integer":
            return ex.Integer(self._integer(children[0]), span)
        if node.data == "truth":
            return ex.Truth(token == "true", span)
        if node.data == "text":
            return ex.Text(unescaped(token[1:-1]), span)
        if token in RESERVED:
            raise self._reserved(token, span)
        return ex.Variable(token, span)

    # ---- tokens --------------------------------------------------------------------------------

    def _words(self, node: Node) -> tuple[tree.Word, ...]:
        return tuple(self._word(item) for item in node.children)

    def _strings(self, node: Node) -> tuple[tree.Word, ...]:
        """Texts between quotes, as written; what stands between them (`or`) is no text."""
        texts = [x for x in node.children if self._is_token(x) and str(x).startswith('"')]
        return tuple(self._string(item) for item in texts)

    def _string(self, token: object) -> tree.Word:
        return tree.Word(str(token)[1:-1], self._span(token))

    def _word(self, token: object) -> tree.Word:
        text, span = str(token), self._span(token)
        if text in RESERVED:
            raise self._reserved(text, span)
        return tree.Word(text, span)

    def _integer(self, token: object) -> int:
        digits = str(token).lstrip("0")
        if len(digits) > 19 or int(digits or "0") > MAX_INTEGER:
            raise self._fault("a number is larger than 9223372036854775807", "too large", token)
        return int(digits or "0")

    def _span(self, node: object) -> Span:
        place = cast("Token", node if self._is_token(node) else cast("Node", node).meta)
        if not self._is_token(node) and cast("Node", node).meta.empty:
            return Span.of(self._source, 0, 0)
        start, end, line, column = place.start_pos, place.end_pos, place.line, place.column
        assert start is not None
        assert end is not None
        assert line is not None
        assert column is not None
        return Span(self._source, start, end, line, column)

    @staticmethod
    def _is_token(node: object) -> bool:
        return isinstance(node, str)

    @staticmethod
    def _trees(node: Node) -> list[Node]:
        return [item for item in node.children if not isinstance(item, str)]

    def _check_depth(self, node: object, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._fault(f"more than {MAX_DEPTH} levels are nested here", "too deep", node)

    def _reserved(self, word: str, span: Span) -> ReshardError:
        return layout_error(
            "syntax",
            f"`{word}` is a word of the language and cannot be a name",
            helps=[f"choose another name, such as `{word}_`"],
            primary=Label(span, "reserved"),
        )

    def _fault(self, headline: str, label: str, node: object, help_text: str = "") -> ReshardError:
        return layout_error(
            "syntax",
            headline,
            helps=[help_text] if help_text else [],
            primary=Label(self._span(node), label),
        )
