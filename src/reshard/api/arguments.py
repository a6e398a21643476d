"""What the public functions take: one table says it, and everything else is refused by name."""

from __future__ import annotations

import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from errno import ENAMETOOLONG
from functools import wraps
from inspect import signature
from math import isfinite
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from reshard.errors import Diagnostic, Exit, ReshardError

P = ParamSpec("P")
R = TypeVar("R")

MAX_THREADS = 1024
_MAX_NUMBER = 2**63


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are what their names say, in the form that it works with.

    Arguments that cannot be bound, such as one with an unknown name, are Python's own TypeError.

    Raises: ReshardError[bad-argument], and what the function raises.
    """
    parameters = signature(function)
    inner = cast("Callable[..., R]", function)

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        bound = parameters.bind(*args, **options)
        for name, value in bound.arguments.items():
            bound.arguments[name] = _taken(name, value, parameters.parameters[name].default)
        return inner(*bound.args, **bound.kwargs)

    return call


class _UnfitError(Exception):
    """A value is not what an argument takes."""


def _taken(name: str, value: object, default: object) -> object:
    kind = _KINDS.get(name)
    if kind is None or (value is None and default is None):
        return value
    what, take = kind
    try:
        return take(value)
    except _UnfitError:
        raise ReshardError(
            Diagnostic(
                "bad-argument",
                f"argument `{name}` is {shown_value(value)}",
                notes=(f"it must be {what}",),
            ),
            Exit.USAGE,
        ) from None


def shown_value(value: object) -> str:
    """A value of any kind in a few words; never an error."""
    try:
        return reprlib.repr(value)
    except Exception:  # noqa: BLE001  a `__repr__` of any kind, or too many digits for Python
        return f"a value of type {type(value).__name__}"


def _path(value: object) -> object:
    if not isinstance(value, str | os.PathLike):
        raise _UnfitError
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise _UnfitError
    try:
        os.lstat(text)
    except OSError as error:
        if error.errno == ENAMETOOLONG:
            raise _UnfitError from None
    except UnicodeError:
        raise _UnfitError from None
    return value if isinstance(value, str | Path) else Path(text)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _UnfitError
    return str(value)


def _texts(value: object) -> tuple[str, ...]:
    """One text is a list of one, and is not read letter by letter."""
    if isinstance(value, str):
        return (str(value),)
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise _UnfitError
    return tuple(_text(item) for item in value)


def _states(value: object) -> str | tuple[str, ...]:
    return str(value) if isinstance(value, str) else _texts(value)


def whole_number(value: object) -> int:
    """An integer of any type that is one, numpy's included; True and False are none.

    Raises: TypeError.
    """
    if isinstance(value, bool):
        raise TypeError
    return operator.index(cast("Any", value))


def _number(value: object) -> int:
    try:
        number = whole_number(value)
    except TypeError:
        raise _UnfitError from None
    if not -_MAX_NUMBER <= number < _MAX_NUMBER:
        raise _UnfitError
    return number


def _count(value: object) -> int:
    number = _number(value)
    if number < 1:
        raise _UnfitError
    return number


def _threads(value: object) -> int:
    number = _count(value)
    if number > MAX_THREADS:
        raise _UnfitError
    return number


def _rank(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise _UnfitError
    return {_text(axis): _number(index) for axis, index in value.items()}


def _settings(value: object) -> dict[str, float | None]:
    if not isinstance(value, Mapping):
        raise _UnfitError
    return {_text(name): _setting(number) for name, number in value.items()}


def _setting(value: object) -> float | None:
    """A whole number, a real one, a condition (1 and 0), or None for what has no value."""
    if value is None:
        return None
    if isinstance(value, float):
        if not isfinite(value):
            raise _UnfitError
        return float(value)
    return int(value) if isinstance(value, bool) else _number(value)


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise _UnfitError
    return value


def _function(value: object) -> object:
    if not callable(value):
        raise _UnfitError
    return value


def _one_of(*allowed: str) -> tuple[str, Callable[[object], object]]:
    def take(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _UnfitError
        return str(value)

    texts = [f'"{item}"' for item in allowed]
    return f"{', '.join(texts[:-1])} or {texts[-1]}", take


_A_PATH = "a path: a str or an os.PathLike, not empty, not longer than the system allows", _path
_A_TEXT = "a str", _text
_SOME_TEXTS = "a str, or a list of them", _texts
_A_BOOL = "True or False", _bool
_A_COUNT = "a whole number from 1 to 2**63 - 1", _count

_KINDS: dict[str, tuple[str, Callable[[object], object]]] = {
    **dict.fromkeys(("path", "src", "dst", "a", "b", "layout", "work", "config"), _A_PATH),
    **dict.fromkeys(("to", "step", "layout_name", "model", "names", "dtype", "source"), _A_TEXT),
    **dict.fromkeys(("name", "state"), _A_TEXT),
    **dict.fromkeys(("check", "force", "dry_run", "allow_loss", "strict"), _A_BOOL),
    **dict.fromkeys(("materialize", "keep_going"), _A_BOOL),
    **dict.fromkeys(
        ("max_memory", "max_file_size", "sample", "ranks", "memory", "bandwidth"), _A_COUNT
    ),
    **dict.fromkeys(("places", "leave_out", "via"), _SOME_TEXTS),
    "threads": (f"a whole number from 1 to {MAX_THREADS}", _threads),
    "settings": ("a mapping of names to finite numbers of at most 64 bits or None", _settings),
    "rank": ("a mapping of mesh axes to whole numbers of at most 64 bits", _rank),
    "states": ("a str, or a list of kinds of state", _states),
    "on_drift": _one_of("error", "average", "first"),
    "framework": _one_of("torch", "numpy"),
    "on_progress": ("a function of one argument", _function),
}
"""What an argument must be, in words, and as a function; by name, the same in every function."""
