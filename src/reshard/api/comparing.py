"""Two checkpoints of any formats, tensor by tensor: which belong together, and how they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from reshard.algebra.box import Box
from reshard.algebra.term import Leaf
from reshard.api.source import OpenedSource
from reshard.api.states import select_states
from reshard.dtypes import DType
from reshard.errors import MAX_SHOWN
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.bind import EXTRA
from reshard.plan.build import Builder, OnDrift
from reshard.plan.names import families, group_names
from reshard.plan.plan import ArraySpec
from reshard.plan.shown import Plain
from reshard.plan.slice import slice_spec
from reshard.plan.text import WIDTH, table, wrap
from reshard.run.states import MASTER, PARAM

if TYPE_CHECKING:
    from reshard.engine.locate import Place
    from reshard.store.source_files import SourceFiles

What = Literal["only in A", "only in B", "shape", "dtype", "values"]


@dataclass(frozen=True, slots=True)
class Element(Plain):
    """One element as one side has it.

    Args:  value: with its bits, e.g. `0.05 (0x3d4ccccd)`.
           file, byte_offset: where it lies; None for padding, and for numbers that are written, but
                              not as bytes of their own.
    """

    value: str
    file: str | None
    byte_offset: int | None

    @staticmethod
    def of(value: str, place: Place | None) -> Element:
        """From what the engine saw."""
        if place is None:
            return Element(value, None, None)
        return Element(value, place.file, place.byte_offset)

    def __str__(self) -> str:
        if self.file is None:
            return f"{self.value}, padding"
        at = "" if self.byte_offset is None else f", byte {self.byte_offset:,}"
        return f"{self.value} in {self.file}{at}"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One state of one parameter that is not the same on both sides.

    Args:  what: "only in A", "only in B", "shape", "dtype", or "values".
           left, right: shape or element type, where these differ.
           numel, numel_different: of all elements, how many differ.
           first_index: of the first one, flat and row-major; `index` is the same by dimension.
           max_abs: largest difference of values; None where it is not a number.
           max_ulp: the same in steps of the element type; None where it has none.
           a, b: the first element that differs, on both sides.
           name_b: what B calls it, where that is another name (tied weights).
    """

    name: str
    state: str
    what: What
    left: str = ""
    right: str = ""
    numel: int = 0
    numel_different: int = 0
    first_index: int = 0
    max_abs: float | None = None
    max_ulp: int | None = None
    index: tuple[int, ...] = ()
    a: Element | None = None
    b: Element | None = None
    name_b: str = ""

    @property
    def label(self) -> str:
        """Its name, or both."""
        return f"{self.name} = {self.name_b}" if self.name_b else self.name

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        out: dict[str, object] = {"name": self.name, "state": self.state, "what": self.what}
        if self.name_b:
            out["name_b"] = self.name_b
        if self.left:
            out |= {"a": self.left, "b": self.right}
        if self.numel_different:
            out |= {
                "elements": self.numel,
                "elements_different": self.numel_different,
                "first_index": self.first_index,
                "index": list(self.index),
                "max_abs": self.max_abs,
                "max_ulp": self.max_ulp,
            }
        if self.a is not None and self.b is not None:
            out["first"] = {"a": self.a.to_json(), "b": self.b.to_json()}
        return out


@dataclass(slots=True)
class Side:
    """One of two checkpoints: how its arrays are made, and from which files.

    Args:  padded: names of tensors whose last rows may be padding.
    """

    builder: Builder
    files: SourceFiles
    padded: frozenset[str] = frozenset()

    @staticmethod
    def of(source: OpenedSource, on_drift: OnDrift = "error") -> Side:
        """A side whose files are those of a source; close them."""
        padded = padded_names(source.arrangement)
        return Side(Builder(source.arrangement, on_drift), source.files(), padded)


def padded_names(arrangement: Arrangement) -> frozenset[str]:
    """The tensors whose last rows may be padding, as the format or the layout tells."""
    names = set(arrangement.catalog.padded)
    layout = arrangement.layout
    for name, bound in arrangement.bound.items():
        first = bound.dims[0] if bound.dims else None
        if isinstance(first, Leaf):
            splits = layout.rules[bound.rule].splits
            split = splits.get(first.axis) or layout.places.get(first.axis)
            if split is not None and split.pad_to is not None:
                names.add(name)
    return frozenset(names)


Pair = tuple[Whole | None, Whole | None]
"""A tensor of both sides; None where one has it not."""


def pair_tensors(
    left: OpenedSource, right: OpenedSource, states: str | Iterable[str] = "all"
) -> list[Pair]:
    """Tensors of both sides by name and state, in the order of the left; what only the right has
    comes last.

    Master weights that one side does not keep apart, because it computes in their type, are held
    against its weights.  Of some kinds of state, tensors that belong to no parameter are compared
    where `extra` is among the kinds.
    """
    kinds = states.split(",") if isinstance(states, str) else states
    has_extra = bool({"all", EXTRA} & {kind.strip() for kind in kinds})
    sides = [
        {
            (w.name, w.state): w
            for w in select_states(side, states).arrangement.wholes
            if has_extra or w.state != EXTRA
        }
        for side in (left, right)
    ]
    aliases = [dict(side.catalog.aliases or {}) for side in (left, right)]
    pairs: list[Pair] = []
    used = set()
    for (name, state), whole in sides[0].items():
        key = (name, state)
        if key not in sides[1]:
            key = (aliases[1].get(name, name), state)
        used.add(key)
        pairs.append((whole, sides[1].get(key) or _as_weights(sides[1], key)))
    for (name, state), whole in sides[1].items():
        if (name, state) not in used:
            key = (aliases[0].get(name, name), state)
            pairs.append((sides[0].get(key) or _as_weights(sides[0], key), whole))
    return pairs


def _as_weights(side: Mapping[tuple[str, str], Whole], key: tuple[str, str]) -> Whole | None:
    """The weights that are their own master weights."""
    name, state = key
    weights = side.get((name, PARAM)) if state == MASTER else None
    return weights if weights is not None and weights.dtype == DType.F32 else None


def pairs_nbytes(pairs: Iterable[Pair]) -> list[int]:
    """The bytes of one side of each pair; 0 of a tensor that stands alone."""
    return [
        0 if one is None or other is None else prod(one.shape) * one.dtype.itemsize
        for one, other in pairs
    ]


def written_from_masters(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of weights that only one side has, with the master weights that the other has alone.

    A run that keeps its weights as master weights alone (ZeRO-3) is exported as weights.
    """
    left = {(one.name, one.state): one for one, other in pairs if one and other is None}
    right = {(other.name, other.state): other for one, other in pairs if other and one is None}
    met: dict[Whole, Pair] = {}
    for (name, state), first in left.items():
        second = right.get((name, {MASTER: PARAM, PARAM: MASTER}.get(state, state)))
        if second is not None:
            met[first] = met[second] = (first, second)
    out: dict[Pair, None] = {}
    both = [pair for pair in pairs if pair[0] and pair[1]]
    paired = ({one for one, _ in both}, {other for _, other in both})
    for one, other in pairs:
        whole = one if other is None else other if one is None else None
        if whole is None:
            out[one, other] = None
        elif whole not in paired[one is None]:
            out[met.get(whole, (one, other))] = None
    return list(out)


def compare_tensors(
    one: Whole | None,
    left: Side,
    other: Whole | None,
    right: Side,
    *,
    widened: bool = False,
    rows: int | None = None,
) -> Mismatch | None:
    """How a pair differs; None if it is the same bit for bit.

    Args:  widened: where the element types differ, compare the numbers too.
           rows: only the first so many rows are compared; both must have them.
    Raises: ReshardError of either side.
    """
    if one is None or other is None:
        whole = one or other
        assert whole is not None
        return Mismatch(whole.name, whole.state, "only in A" if other is None else "only in B")
    mismatch = _compare(one, left, other, right, widened, rows)
    if mismatch is None or one.name == other.name:
        return mismatch
    return replace(mismatch, name_b=other.name)


def _compare(
    one: Whole, left: Side, other: Whole, right: Side, widened: bool, rows: int | None
) -> Mismatch | None:
    from reshard.engine.compare import compare

    head = one.name, one.state
    is_padded = one.name in left.padded or other.name in right.padded
    if rows is not None and _differ_in_rows(one, other):
        is_padded = min(one.shape[0], other.shape[0]) >= rows
    if one.shape != other.shape and not (is_padded and _differ_in_rows(one, other)):
        return Mismatch(*head, "shape", str(list(one.shape)), str(list(other.shape)))
    types = (str(one.dtype), str(other.dtype)) if one.dtype != other.dtype else ("", "")
    if types[0] and not widened:
        return Mismatch(*head, "dtype", *types)
    shape = max(one.shape, other.shape)
    if rows is not None and shape:
        shape = (rows, *shape[1:])
    difference = compare(
        left.builder.array(_padded_spec(one, shape)),
        left.files,
        right.builder.array(_padded_spec(other, shape)),
        right.files,
    )
    if difference is None:
        return None
    if difference.first is None:
        return Mismatch(*head, "dtype", *types)
    a, b = (Element.of(element.value, element.place) for element in difference.first)
    return Mismatch(
        *head,
        "dtype" if types[0] else "values",
        *types,
        prod(shape),
        difference.numel_different,
        difference.first_index,
        difference.max_abs,
        difference.max_ulp,
        unravel(difference.first_index, shape),
        a,
        b,
    )


def _differ_in_rows(one: Whole, other: Whole) -> bool:
    """Whether two shapes are the same but for the number of rows."""
    return len(one.shape) == len(other.shape) > 0 and one.shape[1:] == other.shape[1:]


def _padded_spec(whole: Whole, shape: tuple[int, ...]) -> ArraySpec:
    """A whole tensor of this shape: with rows of zeros behind its own, or without its last ones."""
    if shape < whole.shape:
        return slice_spec(whole, Box.whole(shape))
    spec = slice_spec(whole, Box.whole(whole.shape))
    return spec if whole.shape == shape else replace(spec, numel=prod(shape), shape=shape)


def unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A flat row-major index by dimension."""
    out = []
    for size in reversed(shape):
        index, rest = divmod(index, size) if size else (0, 0)
        out.append(rest)
    return tuple(reversed(out))


TITLES = {
    "only in A": "only in A",
    "only in B": "only in B",
    "shape": "different shapes",
    "dtype": "different element types",
    "values": "different values",
}


def mismatch_lines(mismatches: Sequence[Mismatch]) -> list[str]:
    """A section for each way to differ, a blank line before it."""
    lines = []
    for what, title in TITLES.items():
        items = [item for item in mismatches if item.what == what]
        if items:
            lines += ["", f"{title} ({len(items):,})"]
            lines += _values(items) if what == "values" else _alike(items)
    return lines


def first_lines(item: Mismatch) -> list[str]:
    """The first element that differs: where it is, and both values with their places."""
    if item.a is None or item.b is None:
        return []
    at = f"first at {list(item.index)} of {item.label} ({item.state})"
    out = [f"  {line}" for line in wrap(at, WIDTH - 2, indent="  ")]
    for side, element in (("A", item.a), ("B", item.b)):
        head, *rest = wrap(str(element), WIDTH - 7)
        out += [f"    {side}  {head}", *(f"       {line}" for line in rest)]
    return out


def _values(items: Sequence[Mismatch]) -> list[str]:
    """One row for each family of names and state, then the first element of all."""
    states: dict[str, list[Mismatch]] = {}
    for item in items:
        states.setdefault(item.state, []).append(item)
    named: dict[str, list[tuple[str, ...]]] = {}
    for state, members in states.items():
        by_name: dict[str, list[Mismatch]] = {}
        for item in members:
            by_name.setdefault(item.label, []).append(item)
        for pattern, names in families(by_name):
            group = [item for name in names for item in by_name[name]]
            named.setdefault(pattern, []).append(_row(state, group))
    visible = dict(list(named.items())[:MAX_SHOWN])
    head = ("", "differ", "of", "max diff", "max ulp")
    first, *rows = table([head, *(row for rows in visible.values() for row in rows)], right="lrrrr")
    lines = [first]
    for pattern, found_rows in visible.items():
        lines.append(f"  {pattern}")
        lines += rows[: len(found_rows)]
        rows = rows[len(found_rows) :]
    if len(named) > len(visible):
        lines.append(f"  and {len(named) - len(visible):,} more")
    return [*lines, "", *first_lines(items[0])]


def _row(state: str, items: Sequence[Mismatch]) -> tuple[str, ...]:
    largest = [item.max_abs for item in items if item.max_abs is not None]
    steps = [item.max_ulp for item in items if item.max_ulp is not None]
    return (
        f"      {state}",
        f"{sum(item.numel_different for item in items):,}",
        f"{sum(item.numel for item in items):,}",
        f"{max(largest):.3g}" if largest else "-",
        f"{max(steps):,}" if steps else "-",
    )


def _alike(items: Iterable[Mismatch]) -> list[str]:
    """One line for each family of names that differ alike."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for item in items:
        groups.setdefault((item.state, item.left, item.right), []).append(item.label)
    merged: dict[tuple[str, str, str], list[str]] = {}
    for (state, left, right), names in groups.items():
        for pattern, _ in group_names(names):
            merged.setdefault((left, right, pattern), []).append(state)
    lines = []
    shown = list(merged.items())
    for (left, right, pattern), states in shown[:MAX_SHOWN]:
        tail = f": {left} in A, {right} in B" if left else ""
        lines.append(f"  {pattern} ({', '.join(states)}){tail}")
    if len(shown) > MAX_SHOWN:
        lines.append(f"  and {len(shown) - MAX_SHOWN:,} more")
    return lines
