"""An output as a source: what its arrays hold, where they are placed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from reshard.algebra.box import Box
from reshard.plan.arrangement import Arrangement, AtomState, StoredPart, Whole
from reshard.plan.catalog import Fragment
from reshard.plan.holders import Near, Stored
from reshard.plan.output import PlacedSpec


def as_placed(arrangement: Arrangement, placed: Sequence[PlacedSpec]) -> Arrangement:
    """The tensors of an arrangement that an output holds whole, where its arrays are placed.

    Args:  placed: the arrays that were made of the arrangement.
    Returns: the arrangement with other parts; tensors that the arrays do not hold are left out.
    """
    parts: dict[AtomState, list[StoredPart]] = {}
    for number, item in enumerate(placed):
        for key, piece in item.spec.segments:
            fragment = Fragment(0, item.spec.numel, item.file, item.byte_offset)
            where = (("array", number),)
            parts.setdefault((key, item.spec.state), []).append(
                StoredPart(piece, item.spec.dtype, (fragment,), where, (), "", 0)
            )
    near = {pair: Near([Stored(part) for part in items]) for pair, items in parts.items()}
    wholes: list[Whole] = []
    stored: dict[AtomState, list[StoredPart]] = {}
    for tensor in arrangement.wholes:
        of_tensor = _parts_of(tensor, near)
        if of_tensor is not None:
            wholes.append(tensor)
            for pair, items in of_tensor.items():
                stored.setdefault(pair, []).extend(items)
    kept = {pair: tuple(items) for pair, items in stored.items()}
    return replace(arrangement, parts=kept, wholes=tuple(wholes), averaged={})


def _parts_of(
    tensor: Whole, stored: Mapping[AtomState, Near[Stored]]
) -> dict[AtomState, list[StoredPart]] | None:
    """The parts of a whole tensor, named after it; None if they are not all of it."""
    out: dict[AtomState, list[StoredPart]] = {}
    for key, piece in tensor.segments:
        if not piece.box.volume:
            out.setdefault((key, tensor.state), [])
            continue
        copies: dict[int, list[StoredPart]] = {}
        seen: Counter[Box] = Counter()
        pair = key, tensor.state
        for part in (item.part for item in stored[pair].near(piece.box)) if pair in stored else ():
            box = part.piece.box.intersect(piece.box)
            if box is None:
                continue
            copy = seen[box]
            seen[box] += 1
            here = replace(
                part,
                piece=part.piece.restrict(box),
                replica=(("copy", copy),),
                whole=tensor.name,
                rule=tensor.rule,
            )
            copies.setdefault(copy, []).append(here)
        whole = [
            items
            for items in copies.values()
            if sum(part.piece.box.volume for part in items) == piece.box.volume
        ]
        if not whole:
            return None
        out[key, tensor.state] = [part for items in whole for part in items]
    return out
