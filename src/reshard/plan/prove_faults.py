"""What is said when a source does not store everything exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.algebra.box import Box
from reshard.algebra.cover import Fault
from reshard.errors import Diagnostic
from reshard.plan.arrangement import Atom
from reshard.plan.catalog import Coord, show_coord
from reshard.plan.names import families, quantity

_LOST = "look for a missing rank file; the layout may also be wrong"
_MIXED = "the layout may cut an axis that is copied, or the folder mixes two runs"


@dataclass(frozen=True, slots=True)
class Uncovered:
    """Something that is not stored exactly once.

    Args:  name: of a local or whole tensor.  state, coord: of it.
           files: by index of a box, a file that holds it.
           space: the elements that the boxes should be.  axes: of the space, where they have names.
    """

    name: str
    state: str
    coord: Coord
    fault: Fault
    files: tuple[str, ...]
    space: Box
    axes: tuple[str, ...] = ()


def diagnostics(items: Iterable[Uncovered]) -> Iterator[Diagnostic]:
    """One message for all that are at fault in the same way, but for an index in their names."""
    groups: dict[tuple[object, ...], list[Uncovered]] = {}
    for item in items:
        fault = item.fault
        same = (item.state, item.coord, fault.kind, fault.missing, fault.box.size, item.space.size)
        groups.setdefault(same, []).append(item)
    for group in groups.values():
        by_name = {item.name: item for item in group}
        for pattern, members in families(by_name):
            first = by_name[members[0]]
            on = f" on {show_coord(first.coord)}" if first.coord else ""
            yield _diagnostic(f"`{pattern}`{quantity(len(members))} ({first.state}){on}", first)


def of_atom(atom: Atom, names: Sequence[str], fault: Fault) -> Diagnostic:
    """The whole tensors of one rule are not all of an atom."""
    where = _slice(fault.box, Box.whole(atom.shape), atom.axes)
    if fault.kind == "gap":
        total = Box.whole(atom.shape).volume
        found = f"`{names[0]}`" if len(names) == 1 else f"`{names[0]}` and {len(names) - 1} more"
        return Diagnostic(
            "coverage-gap",
            f"{fault.missing} of {total} elements of `{atom.key}` are not stored",
            notes=(f"missing: {where}", f"stored: {found}"),
            helps=(_LOST,),
        )
    first = names[fault.first]
    if fault.kind == "outside":
        return Diagnostic(
            "coverage-overlap",
            f"`{first}` lies outside of `{atom.key}`",
            notes=(f"at {where}",),
            helps=("correct the size of the axis, in the layout or with `--set`",),
        )
    return Diagnostic(
        "coverage-overlap",
        f"elements of `{atom.key}` are stored twice, in `{first}` and in `{names[fault.second]}`",
        notes=(f"at {where}",),
        helps=("add an index to the name in the rule, so that it distinguishes the tensors",),
    )


def of_axis(axis: str, size: int, ends: Mapping[str, int], stated: str | None) -> Diagnostic:
    """More is stored along an axis than the model has.

    Args:  ends: by name of each tensor, where it ends on the axis.
           stated: what gives the size of the axis.
    """
    stored = max(ends.values())
    past = [name for name, end in ends.items() if end > size]
    more = f", and {len(past) - 1} more" if len(past) > 1 else ""
    return Diagnostic(
        "coverage-overlap",
        f"the source stores {stored:,} along axis `{axis}`, and "
        f"{'its size' if stated is None else f'`{stated}`'} is {size:,}",
        notes=(f"beyond it: `{past[0]}`{more}",),
        helps=(
            f"correct the configuration, or state the size: `--set {stated}={stored}`"
            if stated is not None and stated.isidentifier()
            else "correct the size of the axis, in the layout or with `--set`",
        ),
    )


def of_state(state: str, pattern: str, count: int) -> Diagnostic:
    """Some tensors of an atom lack a state that others have."""
    return Diagnostic(
        "coverage-gap",
        f"state `{state}` of `{pattern}`{quantity(count)} is not stored",
        notes=("other tensors of the same atom have it",),
        helps=(_LOST,),
    )


def _diagnostic(what: str, item: Uncovered) -> Diagnostic:
    fault = item.fault
    where = _slice(fault.box, item.space, item.axes)
    if fault.kind == "gap":
        found = _files(item.files)
        return Diagnostic(
            "coverage-gap",
            f"{fault.missing} of {item.space.volume} elements of {what} are not stored",
            notes=(f"missing: {where}", f"stored: in {found}" if found else "nothing is stored"),
            helps=(_LOST,),
        )
    first = item.files[fault.first]
    if fault.kind == "outside":
        return Diagnostic(
            "coverage-overlap",
            f"elements of {what} lie outside of its shape",
            notes=(f"{where}, in {first}",),
            helps=(_MIXED,),
        )
    return Diagnostic(
        "coverage-overlap",
        f"elements of {what} are stored twice",
        notes=(where, f"in {first} and in {item.files[fault.second]}"),
        helps=(_MIXED,),
    )


def _slice(box: Box, space: Box, axes: tuple[str, ...]) -> str:
    """`[4:8, 0:16] of [0:8, 0:16], axes rows and cols`."""
    named = [axis for axis in axes if axis[:1].isalpha()]
    over = f", axes {', '.join(axes)}" if named and len(named) == len(axes) else ""
    return f"{_ranges(box)} of {_ranges(space)}{over}"


def _ranges(box: Box) -> str:
    return "[" + ", ".join(f"{lo}:{hi}" for lo, hi in zip(box.lo, box.hi, strict=True)) + "]"


def _files(files: Iterable[str]) -> str:
    names = list(dict.fromkeys(files))
    if len(names) <= 2:
        return " and ".join(names)
    return f"{names[0]}, {names[1]}, and {len(names) - 2} more files"
