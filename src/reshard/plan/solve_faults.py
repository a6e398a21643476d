"""What is said when stored shapes and a layout do not fit each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.algebra.term import Leaf, Product, Sum, Term
from reshard.errors import ReshardError, layout_error
from reshard.language.layout import Split
from reshard.plan.catalog import Coord
from reshard.plan.names import group_names


@dataclass(frozen=True, slots=True)
class Observation:
    """A stored shape and where it was found."""

    name: str
    coord: Coord
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True, slots=True)
class Equation:
    """`size of term == length`, as dimension `dim` of a stored tensor says."""

    term: Term
    length: int
    seen: Observation
    dim: int

    def __str__(self) -> str:
        return f"{show_size(self.term)} = {self.length}"


def mismatch(
    item: Equation,
    size: int,
    known: Mapping[str, int],
    origins: Mapping[str, Observation],
    stated: Mapping[str, object],
    mesh: Mapping[str, int],
) -> ReshardError:
    """A dimension is not as long as its axes say.

    Args:  known: the stored size of each axis of the term.
           origins: what told it, for the axes that were solved.
           stated: what the configuration or the user states of the other axes, by name.
    """
    seen = item.seen
    values = ", ".join(f"{axis}={value}" for axis, value in known.items())
    notes = [f"shape {list(seen.shape)} in {seen.file}"]
    if len(known) > 1 or show_size(item.term) not in known:
        notes.append(f"{show_size(item.term)} = {size} with {values}")
    told: dict[Observation, list[str]] = {}
    for axis, other in origins.items():
        if other.name != seen.name or other.file != seen.file:
            told.setdefault(other, []).append(f"`{axis}`")
    notes += [
        f"{_and(axes)} from `{other.name}`, shape {list(other.shape)} in {other.file}"
        for other, axes in told.items()
    ]
    return layout_error(
        "shape-mismatch",
        f"dimension {item.dim} of `{seen.name}` has {item.length} elements "
        f"where the layout says {size}",
        notes=[
            *notes,
            *(
                f"`{name}` is {value} by the configuration or `--set`"
                for name, value in stated.items()
            ),
        ],
        helps=list(_ways_out(item, size, stated, mesh)),
    )


def _ways_out(
    item: Equation, size: int, stated: Mapping[str, object], mesh: Mapping[str, int]
) -> Iterator[str]:
    """What may make the dimension as long as it is."""
    if len(stated) == 1 and isinstance(item.term, Leaf) and size in stated.values():
        yield f"correct it if the tensor is right: `--set {next(iter(stated))}={item.length}`"
    elif stated:
        yield "correct the size that is wrong, in the configuration or with `--set`"
    counts = {1}
    for count in mesh.values():
        counts |= {count * other for other in counts}
    if item.length and size % item.length == 0 and size // item.length in counts - {1}:
        yield "an axis that is cut over ranks needs `over MESH_AXIS` in the layout"
    elif not stated:
        yield "an axis has one size in all tensors: correct the rule, or its axes"


def indivisible(item: Equation, length: int, base: int, step: int, axis: str) -> ReshardError:
    """No whole size of the one unknown axis makes the dimension as long as it is.

    Args:  length, base, step: of `base + step * axis == length`.
    """
    equation = f"{base} + " * (base > 0) + f"{step} * " * (step > 1) + f"{axis} = {length}"
    notes = [f"shape {list(item.seen.shape)} in {item.seen.file}", f"{item}"]
    if equation != f"{item}":
        notes.append(f"with the known sizes: {equation}")
    return layout_error(
        "shape-mismatch",
        f"dimension {item.dim} of `{item.seen.name}` has {item.length} elements, "
        f"which no size of `{axis}` can give",
        notes=notes,
    )


def unequal(item: Equation, left: int, parts: int) -> ReshardError:
    """The unsized parts of a sum cannot be of equal size."""
    return layout_error(
        "shape-mismatch",
        f"dimension {item.dim} of `{item.seen.name}` has {left} elements left for {parts} parts "
        "of equal size",
        notes=[f"shape {list(item.seen.shape)} in {item.seen.file}", f"{item}"],
        helps=["state the sizes of the parts, e.g. `(q:64 + k:16 + v:16)`"],
    )


def unsolvable(items: Sequence[Equation], settable: Sequence[str]) -> ReshardError:
    """Equations with more than one unknown size each.

    Args:  settable: names without a value that the sizes of the unknown axes are made of.
    """
    first = items[0]
    equations: dict[str, list[Equation]] = {}
    for item in items:
        equations.setdefault(f"{item}", []).append(item)
    notes = []
    for text, holders in list(equations.items())[:8]:
        names, _ = group_names(dict.fromkeys(item.seen.name for item in holders))[0]
        notes.append(
            f"{text}, from dimension {holders[0].dim} of `{names}`, "
            f"shape {list(holders[0].seen.shape)} in {holders[0].seen.file}"
        )
    if len(equations) > 8:
        notes.append(f"and {len(equations) - 8} more equations")
    return layout_error(
        "unsolvable-size",
        f"dimension {first.dim} of `{first.seen.name}` is not enough to infer the sizes of its "
        "axes",
        notes=notes,
        helps=[_state_one_of(settable)],
    )


def _state_one_of(settable: Sequence[str]) -> str:
    if not settable:
        return "state a size: `d:64` in the rule, or `axis d = 64` in the model"
    names = [f"`{name}`" for name in settable]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    example = "head_dim" if "head_dim" in settable else settable[0]
    return f"state {listed}, as the model's configuration does: `--set {example}=N`"


def unknown_padding(name: str, seen: Observation) -> ReshardError:
    """An axis is padded, and nothing says how much of it is not padding."""
    return layout_error(
        "unsolvable-size",
        f"axis `{name}` of `{seen.name}` is padded, and its size without padding is unknown",
        notes=[f"shape {list(seen.shape)} in {seen.file}"],
        helps=[
            f"state the size: `{name}:SIZE` in the rule, `axis {name} = SIZE` in the model, "
            f"`truncated to SIZE`, or `--set`"
        ],
    )


def whole_differs(name: str, size: int, seen: Observation, total: int) -> ReshardError:
    """An axis is longer or shorter in one file than over the ranks."""
    return layout_error(
        "shape-mismatch",
        f"axis `{name}` of `{seen.name}` has {size} elements in one file "
        f"and {total} over the ranks of others",
        notes=[f"whole in {seen.file}"],
    )


def truncated(name: str, size: int, total: int, seen: Observation) -> ReshardError:
    """An axis is shorter than what should count of it."""
    return layout_error(
        "shape-mismatch",
        f"axis `{name}` of `{seen.name}` is truncated to {size}, "
        f"but its blocks contain only {total} elements",
        notes=[f"first seen in {seen.file}"],
    )


def missing(
    name: str, split: Split, blocks: Sequence[int], count: int, seen: Observation
) -> ReshardError:
    """A rank does not store a tensor that it should have a block of."""
    return layout_error(
        "missing-block",
        f"block {blocks[0]} of axis `{name}` of `{seen.name}` over {_over(split)} is not stored",
        notes=[
            f"{count - len(blocks)} of {count} blocks are stored, the first in {seen.file}",
        ],
        helps=["look for a missing rank file; the layout may also be wrong"],
    )


def uneven(
    name: str, split: Split, blocks: Sequence[int], seen: Iterable[Observation], why: str
) -> ReshardError:
    """Blocks that were seen are not those that the rule of the layout makes."""
    first = next(iter(seen))
    return layout_error(
        "uneven-split",
        f"axis `{name}` of `{first.name}` is not cut over {_over(split)} as the layout says",
        notes=[f"the ranks store {listed(blocks)} elements, first seen in {first.file}", why],
        helps=[f"state the sizes: `over {', '.join(split.over)} as ({listed(blocks)})`"],
    )


def unsplit(
    name: str, stored: int, split: Split, count: int, mesh: Mapping[str, int], why: str
) -> ReshardError:
    """An axis of a known size cannot be cut as the layout says."""
    over = ", ".join(split.over)
    return layout_error(
        "uneven-split",
        f"axis `{name}` of {stored} elements cannot be cut over {_over(split)}",
        notes=[f"{why}", "mesh: " + ", ".join(f"{a}={n}" for a, n in mesh.items())],
        helps=[
            f"pad it: `place {name} over {over} padded to a multiple of {count}`",
            "or state the sizes with `as`, or cut by rule with `as chunk` or `as balanced`",
        ],
    )


def listed(sizes: Iterable[int]) -> str:
    """`8, 9, 9, 6`."""
    return ", ".join(map(str, sizes))


def show_size(term: Term) -> str:
    """The size of a term as a formula: `kv * (q * d + d + d)`."""
    if isinstance(term, Leaf):
        return term.axis
    if isinstance(term, Product):
        return " * ".join(show_size(item) for item in term.terms) or "1"
    assert isinstance(term, Sum)
    return "(" + " + ".join(show_size(part.term) for part in term.parts) + ")"


def _over(split: Split) -> str:
    return _and([f"`{axis}`" for axis in split.over])


def _and(items: Sequence[str]) -> str:
    if len(items) < 3:
        return " and ".join(items)
    return f"{', '.join(items[:-1])}, and {items[-1]}"
