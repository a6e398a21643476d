"""Trees of texts as JSON, so that what ships need not be parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from itertools import zip_longest
from typing import Any

from reshard.errors import Source, Span
from reshard.language import expression, tree, tree_terms

_TUPLE, _SPAN, _FIRST = 0, 1, 2
"""A list of JSON begins with what it is of: a tuple, a span, or the class of this number."""


@cache
def _classes() -> tuple[type, ...]:
    """Everything that a tree is made of."""
    found = {
        item.__name__: item
        for module in (expression, tree, tree_terms)
        for item in vars(module).values()
        if isinstance(item, type) and hasattr(item, "__match_args__")
    }
    return tuple(found[name] for name in sorted(found))


def encoded(item: object) -> str:
    """A part of a tree as JSON."""
    return json.dumps(_list(item), separators=(",", ":"))


def decoded(text: str, source: Source) -> Any:
    """The part of a tree that was encoded.

    Args:  source: the text that it is of.
    """
    return _tree(json.loads(text), source)


def _list(item: object) -> object:
    if item is None or isinstance(item, str | bool | int):
        return item
    if isinstance(item, tuple):
        return [_TUPLE, *map(_list, item)]
    if isinstance(item, Span):
        return [_SPAN, item.start, item.end]
    values = [_list(getattr(item, name)) for name in _names(type(item))]
    while values and values[-1] is None:
        values.pop()
    return [_classes().index(type(item)) + _FIRST, *values]


def _tree(item: Any, source: Source) -> Any:
    kind, *values = item
    if kind == _SPAN:
        return Span(source, *values)
    parts = [_tree(value, source) if type(value) is list else value for value in values]
    return tuple(parts) if kind == _TUPLE else _makers()[kind - _FIRST](parts)


def _names(cls: Any) -> tuple[str, ...]:
    return tuple(item.name for item in fields(cls))


@cache
def _makers() -> tuple[Callable[[list[Any]], Any], ...]:
    return tuple(map(_maker, _classes()))


def _maker(cls: type) -> Callable[[list[Any]], Any]:
    """What makes an instance of the values of its fields, None for those that are left out."""
    names = _names(cls)
    return lambda values: cls(**dict(zip_longest(names, values)))
