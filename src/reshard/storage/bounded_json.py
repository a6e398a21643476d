"""JSON that says one thing, and takes little more memory than its text."""

from __future__ import annotations

import json
from collections import Counter
from math import isinf
from typing import Any

__all__ = ["load_bounded"]

_DENSE = 5
_FREE = 1 << 20


def load_bounded(data: bytes) -> object:
    """The value of a JSON text in UTF-8.

    Refused are: a key twice in one object, numbers that JSON does not have, too many levels, and a
    long text of hardly anything but brackets, of which every byte would take a hundred.

    Raises: ValueError.
    """
    if len(data) > _FREE:
        brackets = data.count(b"[") + data.count(b"{") + data.count(b":")
        if brackets * _DENSE > len(data):
            raise ValueError(f"{brackets} brackets and colons in {len(data)} bytes")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
    except RecursionError:
        raise ValueError("too many levels") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return out


def _constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value
