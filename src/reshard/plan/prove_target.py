"""The target's half of the coverage proof: every element has a place."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from reshard.algebra.box import Box
from reshard.algebra.cover import find_fault
from reshard.plan.arrangement import Arrangement
from reshard.plan.output import PlacedSpec


def prove_target(
    arrangement: Arrangement,
    placed: Iterable[PlacedSpec],
    excused: Collection[tuple[str, str]],
) -> int:
    """How many (tensor, state) pairs have a place for each of their elements.

    Args:  excused: those that the target says it has no place for.
    Raises: RuntimeError if a tensor was forgotten, which is a bug of the target's format.
    """
    boxes: dict[tuple[str, str], list[Box]] = {}
    for item in placed:
        for key, piece in item.spec.segments:
            if piece.box.volume:
                boxes.setdefault((key, item.spec.state), []).append(piece.box)
    covered = 0
    whole_atoms: dict[tuple[str, str], bool] = {}
    for whole in arrangement.wholes:
        if (whole.name, whole.state) in excused:
            continue
        for key, piece in whole.segments:
            atom = (key, whole.state)
            if atom not in whole_atoms:
                shape = arrangement.atoms[key].shape
                whole_atoms[atom] = _covers(boxes.get(atom, []), Box.whole(shape))
            if not whole_atoms[atom] and not _covers(boxes.get(atom, []), piece.box):
                raise RuntimeError(
                    f"the target was given no place for all of {whole.name} ({whole.state})"
                )
        covered += 1
    return covered


def _covers(boxes: list[Box], whole: Box) -> bool:
    """Whether boxes, which may overlap, together hold a whole one."""
    left = [whole] if whole.volume else []
    distinct = dict.fromkeys(boxes)
    if sum(box.volume for box in distinct) == whole.volume:
        return find_fault(list(distinct), whole) is None
    for box in distinct:
        if not left:
            break
        left = [rest for item in left for rest in item.subtract(box)]
    return not left
