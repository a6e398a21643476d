"""Facts of which every rank has a copy: what all of them say, or where they do not agree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from reshard.errors import source_error

_SHOWN = 3
_LENGTH = 60
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A fact that is not the same everywhere.

    Args:  path: of keys, `param_groups[0].lr`.
           first, other: the value of the first rank and one that is another, as text.
           first_where, other_where: whose they are: files, or ranks.
    """

    path: str
    first: str
    first_where: str
    other: str
    other_where: str

    def __str__(self) -> str:
        return (
            f"`{self.path}` is {self.first} in {self.first_where}, "
            f"and {self.other} in {self.other_where}"
        )


def disagreements(
    copies: Iterable[tuple[str, object]], *, of_each: Collection[str] = ()
) -> tuple[Disagreement, ...]:
    """Where copies of facts are not the same; one answer for each path, in the first one's order.

    Args:  copies: (file or rank, facts) pairs; facts are JSON values.
           of_each: keys of which every rank has a value of its own, at any depth.
    """
    pairs = iter(copies)
    first = next(pairs, None)
    if first is None:
        return ()
    found: dict[str, Disagreement] = {}
    for where, facts in pairs:
        for path, one, other in _differ(first[1], facts, "", frozenset(of_each)):
            if path not in found:
                texts = _text(one), _text(other)
                found[path] = Disagreement(path, texts[0], first[0], texts[1], where)
    return tuple(found.values())


def agreed(
    copies: Sequence[tuple[str, object]], what: str, *, of_each: Collection[str] = ()
) -> object:
    """The facts that every rank has a copy of; those of the first, once all of them agree.

    Args:  copies, of_each: as for `disagreements`; at least one.
           what: they are, for the message: `hyper-parameters of the optimizer`.
    Raises: ReshardError[mixed-runs].
    """
    found = disagreements(copies, of_each=of_each)
    if found:
        more = len(found) - _SHOWN
        raise source_error(
            "mixed-runs",
            f"the {what} differ between ranks",
            notes=[
                *map(str, found[:_SHOWN]),
                *([f"{more} more differ"] if more > 0 else []),
            ],
            helps=[
                "the files may be from different runs or steps; use the files of one run and "
                "one step"
            ],
        )
    return copies[0][1]


def _differ(
    one: object, other: object, path: str, of_each: frozenset[str]
) -> Iterator[tuple[str, object, object]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys((*one, *other)):
            if str(key) in of_each:
                continue
            here = f"{path}.{key}" if path else str(key)
            yield from _differ(one.get(key, _NOTHING), other.get(key, _NOTHING), here, of_each)
        return
    if _is_list(one) and _is_list(other) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differ(left, right, f"{path}[{index}]", of_each)
        return
    if not _same(one, other):
        yield path, one, other


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list | tuple)


def _same(one: object, other: object) -> bool:
    if one is _NOTHING or other is _NOTHING:
        return one is other
    is_nan = one != one and other != other
    return bool(is_nan or (isinstance(one, bool) == isinstance(other, bool) and one == other))


def _text(value: object) -> str:
    text = "not there" if value is _NOTHING else repr(value)
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."
