"""The coverage proof: every element of every atom is stored, and by every replica exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reshard.algebra.cover import Fault, find_fault
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.plan.arrangement import Arrangement, Atom, StoredPart
from reshard.plan.catalog import Coord


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proved.

    Args:  atoms: (atom, state) pairs.  elements: of all of them, each counted once.
           parts: stored runs.  copies: replicas beyond the first, over all pairs.
    """

    atoms: int
    elements: int
    parts: int
    copies: int


def replicas(parts: Sequence[StoredPart]) -> dict[Coord, list[StoredPart]]:
    """Parts by replica, in order of appearance."""
    out: dict[Coord, list[StoredPart]] = {}
    for part in parts:
        out.setdefault(part.replica, []).append(part)
    return out


def prove_sources(arrangement: Arrangement) -> Proof:
    """Prove that the source holds all of what it claims to hold.

    Raises: ReshardError[coverage-gap | coverage-overlap], every one that is found.
    """
    problems: list[Diagnostic] = []
    elements = parts = copies = 0
    for (key, state), stored in arrangement.parts.items():
        atom = arrangement.atoms[key]
        found = replicas(stored)
        for replica, members in found.items():
            shape = atom.shape
            if key.endswith("()") and shape:
                continue  # numbers kept per index of a name; each name states its own
            fault = find_fault([part.piece.box for part in members], shape)
            if fault is not None:
                problems.append(_fault(atom, state, replica, members, fault))
        volume = 1
        for size in atom.shape:
            volume *= size
        elements += volume
        parts += len(stored)
        copies += len(found) - 1
    if problems:
        raise ReshardError(problems, Exit.SOURCE)
    return Proof(len(arrangement.parts), elements, parts, copies)


def _fault(
    atom: Atom, state: str, replica: Coord, members: Sequence[StoredPart], fault: Fault
) -> Diagnostic:
    where = f" on {show_coord(replica)}" if replica else ""
    files = tuple(dict.fromkeys(part.file for part in members))
    if fault.kind == "gap":
        total = 1
        for size in atom.shape:
            total *= size
        return Diagnostic(
            "coverage-gap",
            f"{fault.missing} of {total} elements of `{atom.key}` ({state}) are not stored{where}",
            notes=(
                f"the first that is missing is {list(fault.box.lo)} of shape {list(atom.shape)}",
                f"{len(members)} runs were found in {_files(files)}",
            ),
            helps=(
                "look for a file of a rank that is missing; the layout may also be the wrong one",
            ),
        )
    first = members[fault.first]
    second = members[fault.second] if fault.second >= 0 else first
    if fault.kind == "outside":
        return Diagnostic(
            "coverage-overlap",
            f"a run of `{atom.key}` ({state}) lies outside of its shape {list(atom.shape)}{where}",
            notes=(f"from {list(fault.box.lo)}, {list(fault.box.size)} elements, in {first.file}",),
        )
    return Diagnostic(
        "coverage-overlap",
        f"elements of `{atom.key}` ({state}) are stored twice{where}",
        notes=(
            f"first at {list(fault.box.lo)} of shape {list(atom.shape)}",
            f"in {first.file} and in {second.file}",
        ),
        helps=("the layout may cut an axis that is copied, or the folder mixes two runs",),
    )


def show_coord(coord: Coord) -> str:
    """`tp=1, pp=0`, or `every rank` for a coordinate that varies on no axis."""
    return ", ".join(f"{axis}={index}" for axis, index in coord) or "every rank"


def _files(files: Sequence[str]) -> str:
    if len(files) <= 2:
        return " and ".join(files)
    return f"{files[0]}, {files[1]}, and {len(files) - 2} more files"
