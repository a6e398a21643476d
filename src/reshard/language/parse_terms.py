"""Terms, expressions, and words: the leaves of the tree that a text is built into."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from reshard.algebra.split import SplitRule
from reshard.errors import Label, ReshardError, Source, Span, layout_error
from reshard.language import expression as ex
from reshard.language import tree
from reshard.language.pattern import unescaped

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

MAX_INTEGER = 2**63 - 1


class TermBuilder:
    """Builds the leaves of the tree of one source."""

    def __init__(self, source: Source) -> None:
        self._source = source

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
        if node.data == "conditional":
            then, condition, otherwise = (self._expression(x, depth + 1) for x in children)
            return ex.Conditional(condition, then, otherwise, span)
        if node.data in ("member", "missing"):
            listed = ex.Variable(str(children[-1]), self._span(children[-1]))
            member = ex.Member(self._expression(children[0], depth + 1), listed, span)
            return member if node.data == "member" else ex.Unary("not", member, span)
        if node.data == "item":
            listed = ex.Variable(str(children[0]), self._span(children[0]))
            return ex.Item(listed, self._expression(children[1], depth + 1), span)
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

    def _perhaps(self, token: object) -> tree.Word | None:
        return None if token is None else self._word(token)

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
        assert place.start_pos is not None
        assert place.end_pos is not None
        return Span(self._source, place.start_pos, place.end_pos)

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
