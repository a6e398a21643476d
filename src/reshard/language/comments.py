"""Comments and blank lines: found in the text again, and tied to the statements beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from reshard.language import tree

_COMMENT_OR_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|#[^\n]*')
_BLANK = re.compile(r"\n[ \t\r\f\ufeff]*\n")

Item = TypeVar("Item", bound=tree.Statement)
Braced = TypeVar("Braced", bound=tree.Block | tree.FileStatement | tree.UnderStatement)


@dataclass(frozen=True, slots=True)
class _Comment:
    text: str
    start: int
    end: int


@dataclass(slots=True)
class _Around:
    """What was gathered for one statement."""

    before: list[str]
    inside: list[str]
    remark: str | None = None
    blank: bool = False

    def trivia(self) -> tree.Trivia:
        return tree.Trivia((*self.before, *self.inside), self.remark, self.blank)


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Comments of a region, by statement, and those behind `{` and before the end."""

    around: list[_Around]
    opening: str | None
    closing: tuple[str, ...]


def with_comments(document: tree.Document) -> tree.Document:
    """The document with its comments and blank lines in place."""
    text = document.source.text
    comments = [
        _Comment(found[0].rstrip(), found.start(), found.end())
        for found in _COMMENT_OR_STRING.finditer(text)
        if found[0].startswith("#")
    ]
    opened = [block.brace for block in document.blocks]
    outside = []
    inside: list[list[_Comment]] = [[] for _ in document.blocks]
    for comment in comments:
        for number, block in enumerate(document.blocks):
            if block.span is not None and opened[number] < comment.start < block.span.end:
                inside[number].append(comment)
                break
        else:
            outside.append(comment)
    top = _sort(text, outside, document.blocks, 0, None)
    blocks = []
    for number, block in enumerate(document.blocks):
        trivia = replace(top.around[number].trivia(), blank=False)
        blocks.append(_block(text, block, trivia, inside[number]))
    return replace(document, blocks=tuple(blocks), closing=_without_first_blank(top.closing))


def _block(
    text: str, block: tree.Block, trivia: tree.Trivia, comments: list[_Comment]
) -> tree.Block:
    if isinstance(block, tree.LayoutBlock):
        block = replace(block, statements=_nested(text, block.statements, comments))
    return replace(_filled(text, block, comments), trivia=trivia)


def _nested(text: str, statements: tuple[Item, ...], comments: list[_Comment]) -> tuple[Item, ...]:
    """Statements with the comments between their own braces, which are taken from the list."""
    out: list[Item] = []
    for item in statements:
        if isinstance(item, (tree.FileStatement, tree.UnderStatement)) and item.span is not None:
            start, end = item.brace, item.span.end
            inside = [comment for comment in comments if start < comment.start < end]
            comments[:] = [comment for comment in comments if not start < comment.start < end]
            if isinstance(item, tree.UnderStatement):
                item = replace(item, statements=_nested(text, item.statements, inside))
            item = _filled(text, item, inside)
        out.append(item)
    return tuple(out)


def _filled(text: str, block: Braced, comments: list[_Comment]) -> Braced:
    """A block with the comments between its braces in place."""
    assert block.span is not None
    found = _sort(text, comments, block.statements, block.brace + 1, block.span.end - 1)
    closing = found.closing if block.statements else _without_first_blank(found.closing)
    statements = _given(block.statements, found)
    changes: Any = {"statements": statements, "opening": found.opening, "closing": closing}
    return replace(block, **changes)


def _given(statements: tuple[Item, ...], found: _Sorted) -> tuple[Item, ...]:
    return tuple(
        replace(statement, trivia=around.trivia())
        for statement, around in zip(statements, found.around, strict=True)
    )


def _sort(
    text: str,
    comments: list[_Comment],
    items: Sequence[tree.Statement | tree.Block],
    start: int,
    end: int | None,
) -> _Sorted:
    """Give each comment of a region to an item of it.

    Args:  start, end: of the region; end is None at the top, which has no `{`.
    """
    spans = [(item.span.start, item.span.end) for item in items if item.span is not None]
    around = [_Around([], []) for _ in spans]
    opening: str | None = None
    closing: list[str] = []
    at = 0  # the first item that has not ended before the comment
    last = start  # the end of what stands before
    for comment in comments:
        while at < len(spans) and spans[at][1] <= comment.start:
            around[at].blank = around[at].blank or (
                not around[at].before and _blank(text, last, spans[at][0])
            )
            if around[at].before and _blank(text, last, spans[at][0]):
                around[at].before.append("")
            last = spans[at][1]
            at += 1
        if at < len(spans) and spans[at][0] < comment.start:
            around[at].inside.append(comment.text)
            continue
        if "\n" not in text[last : comment.start] and (at > 0 or end is not None):
            if at > 0:
                around[at - 1].remark = comment.text
            else:
                opening = comment.text
            last = comment.end
            continue
        separated = _blank(text, last, comment.start)
        if at < len(spans):
            if separated and around[at].before:
                around[at].before.append("")
            elif separated:
                around[at].blank = True
            around[at].before.append(comment.text)
        else:
            if separated:
                closing.append("")
            closing.append(comment.text)
        last = comment.end
    for rest in range(at, len(spans)):
        if _blank(text, last, spans[rest][0]):
            if around[rest].before:
                around[rest].before.append("")
            else:
                around[rest].blank = True
        last = spans[rest][1]
    if around:
        around[0].blank = False
    return _Sorted(around, opening, tuple(closing))


def _blank(text: str, start: int, end: int) -> bool:
    return _BLANK.search(text, start, end) is not None


def _without_first_blank(lines: tuple[str, ...]) -> tuple[str, ...]:
    return lines[1:] if lines[:1] == ("",) else lines
