"""Copies within one checkpoint that are not the same: which, by how much, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.algebra.box import Box
from reshard.api.comparing import Element, unravel
from reshard.api.source import OpenedSource
from reshard.engine.progress import Meter
from reshard.errors import Diagnostic
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.build import Builder, OnDrift
from reshard.plan.names import families, quantity
from reshard.plan.plan import Array
from reshard.plan.shown import Plain
from reshard.plan.slice import slice_spec

if TYPE_CHECKING:
    from reshard.store.source_files import SourceFiles

_SETTLED = {"average": "their mean is taken", "first": "the first of them is taken"}


@dataclass(frozen=True, slots=True)
class Drift(
    Plain,
    json_keys={
        "numel": "elements",
        "numel_different": "elements_different",
        "between": None,
        "is_averaged": "averaged",
    },
):
    """A tensor whose copies are not the same.

    Args:  copies: how often it is stored.  numel: elements that have copies.
           numel_different: how many of these are not the same everywhere.
           max_abs, max_ulp: the largest difference of any copy from the first, as a number and in
                             steps of the element type; None where it is not a number.
           index: of the first element that differs.  a, b: what the first copy and another one have
                  there; between: where on the mesh these are.
           is_averaged: the layout says that its copies are averaged.
    """

    name: str
    state: str
    copies: int
    numel: int
    numel_different: int
    max_abs: float | None
    max_ulp: int | None
    index: tuple[int, ...]
    a: Element
    b: Element
    between: tuple[str, str]
    is_averaged: bool

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        one, other = self.between
        return {
            **Plain.to_json(self),
            "a": {**self.a.to_json(), "where": one},
            "b": {**self.b.to_json(), "where": other},
        }


@dataclass(frozen=True, slots=True)
class Drifts:
    """What was found in one checkpoint.

    Args:  copied: (tensor, state) pairs that are stored more than once; all were read.
    """

    copied: int
    found: tuple[Drift, ...]

    @property
    def undeclared(self) -> tuple[Drift, ...]:
        """Those that no layout allows."""
        return tuple(item for item in self.found if not item.is_averaged)


def find_drift(arrangement: Arrangement, files: SourceFiles, meter: Meter) -> Drifts:
    """Read all copies of everything that is stored more than once.

    Args:  meter: is told of every tensor.
    Raises: ReshardError for files that cannot be read.
    """
    from reshard.engine.drift import measure

    builder = Builder(arrangement)
    copied = 0
    drifts = []
    for whole in arrangement.wholes:
        array = _array(builder, whole)
        meter.add(array.spec.nbytes, whole.name)
        if all(box.mode == "first" for box in array.boxes):
            continue
        copied += 1
        difference = measure(array, files)
        if difference is None:
            continue
        first, second = difference.places
        drifts.append(
            Drift(
                whole.name,
                whole.state,
                difference.copies,
                difference.numel,
                difference.numel_different,
                difference.max_abs,
                difference.max_ulp,
                unravel(difference.first_index, whole.shape),
                Element.of(difference.values[0], first),
                Element.of(difference.values[1], second),
                (first.where, second.where),
                any(key in arrangement.averaged for key, _ in whole.segments),
            )
        )
    return Drifts(copied, tuple(drifts))


def drift_warnings(
    source: OpenedSource, arrangement: Arrangement, on_drift: OnDrift
) -> Iterator[Diagnostic]:
    """Which copies of a source differ: one warning for each family of names and kind of state.

    Args:  arrangement: the part of it that is asked for.
           on_drift: what becomes of them; nothing is read where that is an error.
    """
    if on_drift == "error":
        return
    with source.files() as files:
        drifts = find_drift(arrangement, files, Meter(None, 0))
    states: dict[str, dict[str, Drift]] = {}
    for item in drifts.undeclared:
        states.setdefault(item.state, {})[item.name] = item
    for state, members in states.items():
        for pattern, names in families(members):
            items = [members[name] for name in names]
            yield Diagnostic(
                "drift-settled",
                f"copies of `{pattern}` ({state}){quantity(len(items))} differ, "
                f"and {_SETTLED[on_drift]}",
                "warning",
                notes=(extent(items), first_difference(items[0])),
            )


def extent(items: list[Drift]) -> str:
    """How many elements of all that have copies differ, and by how much."""
    different = sum(item.numel_different for item in items)
    numel = sum(item.numel for item in items)
    largest = [item.max_abs for item in items if item.max_abs is not None]
    by = f", by at most {max(largest):.9g}" if largest else ""
    copies = max(item.copies for item in items)
    return f"{different:,} of {numel:,} elements differ{by}, in {copies} copies"


def first_difference(item: Drift) -> str:
    """Where the first element is that differs, and both values with their places."""
    one, other = item.between
    return (
        f"first difference at {list(item.index)} of `{item.name}`: "
        f"{one or 'one copy'} has {item.a}, {other or 'another'} has {item.b}"
    )


def _array(builder: Builder, whole: Whole) -> Array:
    return builder.array(slice_spec(whole, Box.whole(whole.shape)))
