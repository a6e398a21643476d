"""Tensors that came back from a target, held to those that set out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.api.comparing import Element, Mismatch, Side, compare_tensors, padded_names, unravel
from reshard.api.stages import NO_DIGEST, Stage
from reshard.engine.progress import Meter
from reshard.errors import ReshardError
from reshard.formats.universal.read_manifest import read_manifest
from reshard.plan.arrangement import SCALAR, Arrangement, AtomState, StoredPart, Whole
from reshard.plan.build import Builder, OnDrift
from reshard.plan.plan import ArraySpec
from reshard.plan.slice import slice_spec
from reshard.run.states import MASTER, PARAM

Digests = dict[tuple[str, str], str]


class Comparer:
    """Compares by the digests of both universal forms, and by elements where there are none.

    Args:  source: with the places of what set out.  universal: its universal form.
           there: the target that it came back from, with its places.
           last: the universal form of what came back.
    """

    def __init__(
        self, source: Stage, universal: Stage, target: Stage, last: Stage, on_drift: OnDrift
    ) -> None:
        self._before, self._after = _digests(universal), _digests(last)
        arrangement = source.source.arrangement
        self._wholes = {(whole.name, whole.state): whole for whole in arrangement.wholes}
        padded = padded_names(arrangement)
        self._left = Side(Builder(arrangement, on_drift), source.files, padded)
        self._right = Side(Builder(last.source.arrangement), last.files)
        self._there = Side(Builder(target.source.arrangement), target.files)
        self._held = {(w.name, w.state): w for w in target.source.arrangement.wholes}

    def compare(self, one: Whole, other: Whole, rows: int | None = None) -> Mismatch | None:
        """How a tensor that came back differs; None if it is the same bit for bit.

        Args:  rows: only so many of them are compared.
        """
        digest = self._before.get((one.name, one.state))
        if (
            digest is not None
            and digest == self._after.get((other.name, other.state))
            and (one.shape, one.dtype) == (other.shape, other.dtype)
        ):
            return None
        whole = self._wholes[one.name, one.state]
        in_target = self._held.get((other.name, other.state))
        if in_target is not None:
            mismatch = compare_tensors(whole, self._left, in_target, self._there, rows=rows)
            if mismatch is not None:
                return mismatch
        return compare_tensors(whole, self._left, other, self._right, rows=rows)


WEIGHTS = {PARAM: MASTER, MASTER: PARAM}
"""Which weights may be made of which."""


def made_from(
    weights: Stage, whole: Whole, others: Stage, *, state: str | None = None
) -> str | None:
    """The state of another stage of which these weights are made, element by element.

    Weights in the compute type are their master weights rounded, and those of a run without master
    weights, widened, are what its master weights begin with.

    Args:  weights: the stage that has them.  whole: one of its tensors.
           state: of the other stage; that of the other weights if None.
    Returns: the state; None if there are no such weights, or others.
    """
    from reshard.engine.cast import is_rounded
    from reshard.engine.compare import compare

    state = state or WEIGHTS.get(whole.state)
    for base in others.source.arrangement.wholes:
        if (base.name, base.state, base.shape) == (whole.name, state, whole.shape):
            break
    else:
        return None
    assert state is not None
    if not (is_rounded(whole.dtype) and is_rounded(base.dtype)):
        return None  # what is no real number has no masters: a mask that became floats is another
    rounded = ArraySpec(
        whole.name, state, whole.dtype, prod(whole.shape), base.segments, whole.shape
    )
    spec = slice_spec(whole, Box.whole(whole.shape))
    try:
        difference = compare(
            Builder(weights.source.arrangement).array(spec),
            weights.files,
            Builder(others.source.arrangement).array(rounded),
            others.files,
        )
    except ReshardError as error:
        if all(item.code == "cast-refused" for item in error.diagnostics):
            return None
        raise
    return state if difference is None else None


def _digests(stage: Stage) -> Digests:
    """What was computed of the tensors of a universal stage while it was made.

    What was written is read again instead: then nothing is taken from memory.
    """
    if stage.is_written:
        return {}
    manifest = read_manifest(Path(stage.source.catalog.root))
    return {
        (item.name, item.state): item.digest
        for item in manifest.tensors
        if item.digest != NO_DIGEST
    }


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
    keys: Collection[tuple[str, str]],
    on_drift: OnDrift,
    meter: Meter,
) -> Remade:
    """Make every stored piece of a source from the whole tensors that came back.

    Args:  came_back: a universal checkpoint with the names of the source.
           keys: (name, state) of the tensors that are looked at.
           meter: is told of every piece.
    """
    from reshard.engine.compare import compare

    arrangement = source.source.arrangement
    rebuilt = Side(Builder(_from_wholes(arrangement, came_back, keys)), came_back.files)
    wholes = {(whole.name, whole.state): whole for whole in arrangement.wholes}
    places, nbytes, settled = 0, 0, 0
    mismatches = []
    for atom_state, parts in arrangement.parts.items():
        for part in parts:
            whole = wholes.get((part.whole, atom_state[1]))
            if whole is None or (whole.name, whole.state) not in keys:
                continue
            if _is_settled(arrangement, atom_state, parts, on_drift):
                settled += 1
                continue
            spec = _spec(atom_state, part, whole)
            one_part = replace(arrangement, parts={atom_state: (part,)}, averaged={})
            difference = compare(
                Builder(one_part).array(spec),
                source.files,
                rebuilt.builder.array(spec),
                rebuilt.files,
            )
            places += 1
            nbytes += spec.nbytes
            meter.add(spec.nbytes, spec.label)
            if difference is not None and difference.first is not None:
                first, second = difference.first
                mismatches.append(
                    Mismatch(
                        whole.name,
                        whole.state,
                        "values",
                        numel=spec.numel,
                        numel_different=difference.numel_different,
                        first_index=difference.first_index,
                        max_abs=difference.max_abs,
                        max_ulp=difference.max_ulp,
                        index=unravel(difference.first_index, spec.shape or ()),
                        a=Element.of(first.value, first.place),
                        b=Element.of(second.value, second.place),
                    )
                )
    return Remade(places, nbytes, settled, tuple(mismatches))


def _from_wholes(
    arrangement: Arrangement, came_back: Stage, keys: Collection[tuple[str, str]]
) -> Arrangement:
    """The atoms of a source, stored by other whole tensors."""
    catalog = came_back.source.catalog
    tensors = {(item.name, item.state): item for item in catalog.tensors}
    parts: dict[AtomState, list[StoredPart]] = {}
    for whole in arrangement.wholes:
        tensor = tensors.get((whole.name, whole.state))
        if tensor is None or (whole.name, whole.state) not in keys:
            continue
        for key, piece in whole.segments:
            part = StoredPart(piece, tensor.dtype, tensor.fragments, (), (), whole.name, whole.rule)
            parts.setdefault((key, whole.state), []).append(part)
    by_atom = {key: tuple(items) for key, items in parts.items()}
    return replace(arrangement, parts=by_atom, averaged={})


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
