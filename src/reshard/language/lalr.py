"""From text to the raw tree of its grammar rules, by the tables that `make_tables` wrote.

The tables are those that lark computes of `grammar/ucl.lark`, and what this reads is what lark
would read, node for node; lark itself takes longer to start than most texts take to be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Union

from reshard.language import parse_tables as tables

Match = Callable[[str, int], "re.Match[str] | None"]
Value = Union["Node", "Token", None]


class Token(str):
    """A word, a string, a number or a sign, with the place of its first character."""

    __slots__ = ("start",)
    start: int

    @property
    def end(self) -> int:
        """The place behind its last character."""
        return self.start + len(self)


class Node:
    """What one grammar rule has read.

    Args:  data: name of the rule.  children: nodes, tokens, and None for what is absent.
           start, end: place of its first character, and behind its last one; -1 where it is empty.
           outer: the same with parentheses around it.
    """

    __slots__ = ("children", "data", "end", "outer", "start")

    def __init__(self, data: str, children: list[Value]) -> None:
        self.data = data
        self.children = children
        self.start = self.end = -1
        self.outer = (-1, -1)


class Unexpected(Exception):  # noqa: N818
    """A text is no UCL.

    Args:  at: where that is seen.  accepted: names of the terminals that could have been there.
           is_end: the text is at its end.  last: what was read before.
    """

    def __init__(self, at: int, accepted: frozenset[str], is_end: bool, last: Value) -> None:
        super().__init__(f"character {at}")
        self.at = at
        self.accepted = accepted
        self.is_end = is_end
        self.last = last


def parse(text: str) -> Node:
    """The raw tree of a text.

    Raises: Unexpected.
    """
    states, values = [0], list[Value]()
    ignored, word_at, length = _regex(tables.IGNORED), _regex(tables.WORD), len(text)
    at = 0
    while True:
        at = _end(ignored(text, at))
        row = _row(states[-1])
        terminal, end = tables.END, at
        if at < length:
            found = word_at(text, at)
            word = "" if found is None else found[0]
            terminal = tables.KEYWORDS.get(word, -1)
            end += len(word)
            if terminal not in row:
                terminal, end = _other(states[-1], text, at)
        step = row.get(terminal)
        while step is not None and step < 0:
            _reduce(tables.RULES[~step], states, values)
            if states[-1] == tables.LAST and terminal == tables.END:
                node = values[-1]
                assert isinstance(node, Node)
                return node
            step = _row(states[-1]).get(terminal)
        if step is None:
            last = values[-1] if values else None
            raise Unexpected(at, _accepted(states), at == length, last)
        token = Token(text[at:end])
        token.start = at
        states.append(step)
        values.append(token)
        at = end


def _end(found: re.Match[str] | None) -> int:
    assert found is not None
    return found.end()


@cache
def _regex(pattern: str) -> Match:
    return re.compile(pattern).match


@cache
def _row(state: int) -> dict[int, int]:
    """What a state does at a terminal or a rule: the next state, or -1 - a rule to reduce by."""
    row = tables.STATES[state]
    return dict(zip(row[::2], row[1::2], strict=True))


@cache
def _others(state: int) -> Sequence[tuple[int, Match]]:
    """The terminals besides keywords that a state accepts, as they take precedence."""
    row = _row(state)
    return [(terminal, _regex(pattern)) for terminal, pattern in tables.OTHERS if terminal in row]


def _other(state: int, text: str, at: int) -> tuple[int, int]:
    for terminal, match in _others(state):
        found = match(text, at)
        if found is not None:
            return terminal, found.end()
    return -1, at


def _accepted(states: list[int]) -> frozenset[str]:
    """The terminals with which a text could go on."""
    terminals = (item for item in _row(states[-1]) if item < len(tables.TERMINALS))
    return frozenset(tables.TERMINALS[item] for item in terminals if _is_accepted(states, item))


def _is_accepted(states: list[int], terminal: int) -> bool:
    states = states.copy()
    step = _row(states[-1]).get(terminal)
    while step is not None and step < 0:
        origin, size, *_ = tables.RULES[~step]
        del states[len(states) - size :]
        states.append(_row(states[-1])[origin])
        if states[-1] == tables.LAST and terminal == tables.END:
            return True
        step = _row(states[-1]).get(terminal)
    return step is not None


def _reduce(rule: tables.Rule, states: list[int], values: list[Value]) -> None:
    """Put what a rule has read in the place of its parts."""
    origin, size, data, is_single, picked, absent = rule
    cut = len(values) - size
    parts = values[cut:]
    del values[cut:], states[cut + 1 :]
    states.append(_row(states[-1])[origin])
    children = list[Value]()
    for index, is_inlined, nones in picked:
        if nones:
            children += [None] * nones
        part = parts[index]
        if is_inlined:
            assert isinstance(part, Node)
            children += part.children
        else:
            children.append(part)
    children += [None] * absent
    if is_single and len(children) == 1:
        value = children[0]
        if not isinstance(value, Node):
            values.append(value)
            return
    else:
        value = Node(data, children)
    _place(value, parts)
    values.append(value)


def _place(node: Node, parts: list[Value]) -> None:
    """Set where a node starts and ends: with its first and its last part that is not empty."""
    first = next((outer for outer in map(_outer, parts) if outer is not None), None)
    if first is None:
        return
    last = next(outer for outer in map(_outer, reversed(parts)) if outer is not None)
    node.outer = (first[0], last[1])
    if node.start < 0:
        node.start, node.end = node.outer


def _outer(part: Value) -> tuple[int, int] | None:
    if isinstance(part, Token):
        return part.start, part.end
    return part.outer if part is not None and part.start >= 0 else None
