"""The stored pieces of a source, made again from whole tensors and held to its files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from reshard.algebra.piece import Piece, row_major
from reshard.api.comparing import Element, Mismatch, Side, unravel
from reshard.api.stages import Stage
from reshard.engine.progress import Meter
from reshard.plan.arrangement import SCALAR, Arrangement, AtomState, StoredPart, Whole
from reshard.plan.build import Builder, OnDrift
from reshard.plan.plan import ArraySpec


@dataclass(frozen=True, slots=True)
class Remade:
    """What came of it.

    Args:  places, nbytes: that were compared.
           settled: places whose copies differ and were settled, which were not.
    """

    places: int
    nbytes: int
    settled: int
    mismatches: tuple[Mismatch, ...]


def remake(
    source: Stage,
    came_back: Stage,
    wanted: Collection[tuple[str, str]],
    on_drift: OnDrift,
    meter: Meter,
) -> Remade:
    """Make every stored piece of a source from the whole tensors that came back.

    Args:  came_back: a universal checkpoint with the names of the source.
           wanted: (name, state) of the tensors that are looked at.
           meter: is told of every piece.
    """
    from reshard.engine.compare import compare

    arrangement = source.source.arrangement
    again = Side(Builder(_from_wholes(arrangement, came_back, wanted)), came_back.files)
    wholes = {(whole.name, whole.state): whole for whole in arrangement.wholes}
    places, nbytes, settled = 0, 0, 0
    mismatches = []
    for atom_state, parts in arrangement.parts.items():
        for part in parts:
            whole = wholes.get((part.whole, atom_state[1]))
            if whole is None or (whole.name, whole.state) not in wanted:
                continue
            if _is_settled(arrangement, atom_state, parts, on_drift):
                settled += 1
                continue
            spec = _spec(atom_state, part, whole)
            alone = replace(arrangement, parts={atom_state: (part,)}, averaged={})
            found = compare(
                Builder(alone).array(spec), source.files, again.builder.array(spec), again.files
            )
            places += 1
            nbytes += spec.nbytes
            meter.add(spec.nbytes, spec.label)
            if found is not None and found.first is not None:
                first, second = found.first
                mismatches.append(
                    Mismatch(
                        whole.name,
                        whole.state,
                        "values",
                        numel=spec.numel,
                        numel_different=found.numel_different,
                        first_index=found.first_index,
                        max_abs=found.max_abs,
                        max_ulp=found.max_ulp,
                        index=unravel(found.first_index, spec.shape or ()),
                        a=Element.of(first.value, first.place),
                        b=Element.of(second.value, second.place),
                    )
                )
    return Remade(places, nbytes, settled, tuple(mismatches))


def _from_wholes(
    arrangement: Arrangement, came_back: Stage, wanted: Collection[tuple[str, str]]
) -> Arrangement:
    """The atoms of a source, stored by other whole tensors."""
    catalog = came_back.source.catalog
    stored = {(item.name, item.state): item for item in catalog.tensors}
    parts: dict[AtomState, list[StoredPart]] = {}
    for whole in arrangement.wholes:
        tensor = stored.get((whole.name, whole.state))
        if tensor is None or (whole.name, whole.state) not in wanted:
            continue
        for key, piece in whole.segments:
            part = StoredPart(piece, tensor.dtype, tensor.fragments, (), (), whole.name, whole.rule)
            parts.setdefault((key, whole.state), []).append(part)
    found = {key: tuple(items) for key, items in parts.items()}
    return replace(arrangement, parts=found, averaged={})


def _spec(atom_state: AtomState, part: StoredPart, whole: Whole) -> ArraySpec:
    """What a stored piece holds of an atom, dense."""
    key, state = atom_state
    box = part.piece.box
    if key.endswith(SCALAR):
        numbers = ((key, Piece(box, 0, (0,) * len(box.size))),)
        return ArraySpec(whole.name, state, part.dtype, 1, numbers, ())
    dense = ((key, Piece(box, 0, row_major(box.size))),)
    return ArraySpec(whole.name, state, part.dtype, box.volume, dense, box.size)


def _is_settled(
    arrangement: Arrangement,
    atom_state: AtomState,
    parts: tuple[StoredPart, ...],
    on_drift: OnDrift,
) -> bool:
    """Whether copies may differ: then what came back is not what each of them holds."""
    if atom_state[0] in arrangement.averaged:
        return True
    return on_drift != "error" and len({part.replica for part in parts}) > 1
