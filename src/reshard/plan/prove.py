"""The coverage proof: every element of every atom is stored, and by every replica exactly once.

In three steps, each about boxes or runs of its own: the runs of a local tensor are all of it; the
local tensors of one replica are all of a whole tensor; the whole tensors of one rule are all of an
atom.  That a local tensor's elements are those of its atoms one to one is what `bind` checks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from reshard.algebra.box import Box
from reshard.algebra.cover import find_fault
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.language.expression import to_text
from reshard.plan.arrangement import Arrangement, Atom, StoredPart, Whole
from reshard.plan.catalog import Coord, LocalTensor
from reshard.plan.collector import uncollected
from reshard.plan.names import group_names
from reshard.plan.prove_faults import Uncovered, diagnostics, of_atom, of_axis, of_state
from reshard.plan.shown import Plain
from reshard.run.states import MASTER, PARAM


@dataclass(frozen=True, slots=True)
class Proof(Plain, json_keys={"atoms": "stored", "parts": "runs"}):
    """What was proved.

    Args:  atoms: (atom, state) pairs.  elements: of all of them, each counted once.
           parts: stored runs.  copies: replicas beyond the first, over all pairs.
    """

    atoms: int
    elements: int
    parts: int
    copies: int


@uncollected
def prove_sources(arrangement: Arrangement) -> Proof:
    """Prove that the source holds all of what it claims to hold.

    Raises: ReshardError[coverage-gap | coverage-overlap], every one that is found.
    """
    uncovered = [
        found
        for tensor in arrangement.catalog.tensors
        if (found := _uncovered_tensor(tensor)) is not None
    ]
    if uncovered:
        raise ReshardError(diagnostics(uncovered), Exit.SOURCE)
    stored = {pair: by_whole(parts) for pair, parts in arrangement.parts.items()}
    for whole in arrangement.wholes:
        for key, piece in whole.segments:
            members = stored.get((key, whole.state), {}).get(whole.name, [])
            uncovered += _uncovered_whole(whole, arrangement.atoms[key], piece.box, members)
    problems = [*diagnostics(uncovered), *_atom_problems(arrangement)]
    if problems:
        raise ReshardError(problems, Exit.SOURCE)
    return Proof(
        len(stored),
        sum(piece.box.volume for whole in arrangement.wholes for _, piece in whole.segments),
        sum(len(tensor.fragments) for tensor in arrangement.catalog.tensors),
        sum(copy_count(parts) - 1 for parts in arrangement.parts.values() if parts),
    )


def copy_count(parts: Iterable[StoredPart]) -> int:
    """How often the most stored element of an atom is stored, by one rule or by several."""
    most: dict[int, int] = {}
    for members in by_whole(parts).values():
        rule = members[0].rule
        most[rule] = max(most.get(rule, 0), len(replicas(members)))
    return sum(most.values())


def by_whole(parts: Iterable[StoredPart]) -> dict[str, list[StoredPart]]:
    """Parts by the whole tensor that they belong to, in order of appearance."""
    out: dict[str, list[StoredPart]] = {}
    for part in parts:
        out.setdefault(part.whole, []).append(part)
    return out


def replicas(parts: Iterable[StoredPart]) -> dict[Coord, list[StoredPart]]:
    """Parts of one whole tensor by replica, in order of appearance."""
    out: dict[Coord, list[StoredPart]] = {}
    for part in parts:
        out.setdefault(part.replica, []).append(part)
    return out


def _uncovered_tensor(tensor: LocalTensor) -> Uncovered | None:
    """A local tensor whose fragments are not all of it."""
    at = 0
    for fragment in tensor.fragments:
        if fragment.start != at or fragment.box is not None:
            break
        at += fragment.numel
    else:
        if at == tensor.numel:
            return None
    space = Box.whole((tensor.numel,))
    boxes = [Box((fragment.start,), (fragment.numel,)) for fragment in tensor.fragments]
    if any(fragment.box is not None for fragment in tensor.fragments):
        space = Box.whole(tensor.shape)
        boxes = [fragment.box or space for fragment in tensor.fragments]
    fault = find_fault(boxes, space)
    if fault is None:
        return None
    files = tuple(fragment.file for fragment in tensor.fragments)
    return Uncovered(tensor.name, tensor.state, tensor.coord, fault, files, space)


def _uncovered_whole(
    whole: Whole, atom: Atom, space: Box, members: Sequence[StoredPart]
) -> list[Uncovered]:
    """The replicas of a whole tensor whose local tensors are not all of its box of one atom."""
    out = []
    for replica, held in (replicas(members) or {(): []}).items():
        fault = find_fault([part.piece.box for part in held], space)
        if fault is not None:
            files = tuple(part.fragments[0].file for part in held)
            out.append(Uncovered(whole.name, whole.state, replica, fault, files, space, atom.axes))
    return out


def _atom_problems(arrangement: Arrangement) -> list[Diagnostic]:
    """Why the whole tensors of a rule are not all of an atom, and states that only some have."""
    boxes: dict[tuple[str, int], dict[str, Box]] = {}
    states: dict[str, set[str]] = {}
    for whole in arrangement.wholes:
        if whole.rule < 0:
            continue
        states.setdefault(whole.name, set()).add(whole.state)
        for key, piece in whole.segments:
            boxes.setdefault((key, whole.rule), {})[whole.name] = piece.box
    problems = []
    beyond: dict[tuple[str, int], dict[str, int]] = {}
    lacking: dict[str, list[str]] = {}
    for (key, _), held in boxes.items():
        atom = arrangement.atoms[key]
        names = list(held)
        fault = find_fault(list(held.values()), Box.whole(atom.shape))
        longer = _longer(atom, held) if fault is not None and fault.kind == "outside" else None
        if longer is not None:
            beyond.setdefault(longer, {}).update(
                (name, box.hi[atom.axes.index(longer[0])]) for name, box in held.items()
            )
        elif fault is not None:
            problems.append(of_atom(atom, names, fault))
        for state in dict.fromkeys(state for name in names for state in states[name]):
            for name in names:
                if not _is_excused(arrangement, name, state, states[name]):
                    lacking.setdefault(state, []).append(name)
    model = arrangement.layout.model
    for (axis, size), ends in beyond.items():
        stated = None if model is None else model.axes[axis].size
        problems.append(of_axis(axis, size, ends, None if stated is None else to_text(stated)))
    problems += [
        of_state(state, pattern, count)
        for state, names in lacking.items()
        for pattern, count in group_names(dict.fromkeys(names))
    ]
    return problems


def _longer(atom: Atom, held: Mapping[str, Box]) -> tuple[str, int] | None:
    """The one axis along which more of an atom is stored than there is, and its size."""
    ends = [max(box.hi[at] for box in held.values()) for at in range(len(atom.shape))]
    longer = [at for at, size in enumerate(atom.shape) if ends[at] > size]
    if len(longer) != 1 or find_fault(list(held.values()), Box.whole(tuple(ends))) is not None:
        return None
    return atom.axes[longer[0]], atom.shape[longer[0]]


def _is_excused(arrangement: Arrangement, name: str, state: str, stored: Collection[str]) -> bool:
    """Whether a whole tensor need not have a state that others of its atom have."""
    if state in stored:
        return True
    if state == PARAM:
        return MASTER in stored  # ZeRO-3 stores no weights in the compute type
    return name in arrangement.catalog.frozen
