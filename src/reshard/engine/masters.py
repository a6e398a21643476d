"""Whether master weights are those of the weights beside them: rounded, they are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reshard.dtypes import DType
from reshard.engine.compare import Seen
from reshard.engine.elements import Elements, numpy_dtype, show_element
from reshard.engine.fill import Filler
from reshard.engine.gather import Gatherer
from reshard.engine.locate import locate
from reshard.plan.plan import Array
from reshard.store.source_files import SourceFiles

MASTERS = frozenset((DType.F32, DType.F64))
WEIGHTS = frozenset((DType.F16, DType.BF16, DType.F32, DType.F64))
"""Types of which one is the other rounded; narrower ones have scales besides."""

_THROUGH = (None, DType.BF16, DType.F16)
"""Weights may have been widened again after they were rounded to the type that was trained in."""

_DIGITS = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 52}
"""Binary places behind the first one."""

_RUN = 16
_WINDOW = 1 << 18


@dataclass(frozen=True, slots=True)
class Apart:
    """Masters that are not those of the weights.

    Args:  index: flat, of the first element that was found.  weight, master: what is there.
    """

    index: int
    weight: Seen
    master: Seen


@dataclass(frozen=True, slots=True)
class Held:
    """One tensor of weights, held against its masters.

    Args:  apart: the first element that differs, if any.
           looked: elements of which samples were taken, by the file of masters or of weights.
           wrong: those of them that differ, of weights by more than one unit in the last place;
                  a file where others do counts 0.
    """

    apart: Apart | None
    looked: Counter[str]
    wrong: Counter[str]


def hold_masters(
    weight: Array, master: Array, files: SourceFiles, gatherer: Gatherer, *, full: bool
) -> Held:
    """Weights against their masters rounded.

    Args:  weight, master: of one shape, of types in `WEIGHTS` and `MASTERS`.
           full: read all elements; else a few of each run that either is stored in.
    Raises: ReshardError, as `Filler.fill`.
    """
    sides = Filler(weight, files), Filler(master, files)
    looked: Counter[str] = Counter()
    seen: dict[DType | None, list[_Wrong]] = {through: [] for through in _THROUGH}
    for start, stop, side, file in _ranges(weight, master, full=full):
        if not file and all(seen.values()):
            break
        one, other = (_read(filler, start, stop, gatherer) for filler in sides)
        if file:
            looked[file] += stop - start
        for through, found in seen.items():
            where = np.flatnonzero(_differ(one, other, through))
            if len(where):
                at = int(where[0])
                pair = one[at : at + 1], other[at : at + 1]
                far = _are_far(one[where], other[where], through) if side is weight else len(where)
                found.append(_Wrong(start + at, *pair, file, len(where), far))
    found = min(seen.values(), key=lambda items: sum(item.count for item in items))
    wrong: Counter[str] = Counter()
    for item in found:
        for side in (weight, master):
            wrong[_file(side, item.index)] += 0
        if item.file:
            wrong[item.file] += item.far
    if not found:
        return Held(None, looked, wrong)
    first = min(found, key=lambda item: item.index)
    apart = Apart(
        first.index,
        Seen(show_element(first.weight), locate(weight, first.index)),
        Seen(show_element(first.master), locate(master, first.index)),
    )
    return Held(apart, looked, wrong)


@dataclass(frozen=True, slots=True)
class _Wrong:
    """The first element of a range that differs, and how many do; the file if all are of one.

    Args:  far: how many of them count against the file.
    """

    index: int
    weight: Elements
    master: Elements
    file: str
    count: int
    far: int


def _ranges(
    weight: Array, master: Array, *, full: bool
) -> Iterator[tuple[int, int, Array | None, str]]:
    """Flat ranges to look at: samples first, and then all of it if that is asked for.

    With each sample what it was taken of, and the file.
    """
    for side in (master, weight):
        for lo, hi in _samples(side):
            yield lo, hi, side, _file(side, lo)
    if full:
        numel = weight.spec.numel
        yield from ((x, min(x + _WINDOW, numel), None, "") for x in range(0, numel, _WINDOW))


def _file(array: Array, index: int) -> str:
    """The file of an element; empty for padding."""
    place = locate(array, index)
    return "" if place is None else place.file


def _samples(array: Array) -> list[tuple[int, int]]:
    """The beginning, the middle and the end of every run that is stored, as flat ranges."""
    ranges: dict[tuple[int, int], None] = {}
    for copy in array.copies:
        if not copy.numel:
            continue
        shape, steps = copy.move.shape, copy.move.dst_strides
        inner = steps.index(1) if 1 in steps else None
        width = 1 if inner is None else min(_RUN, shape[inner])
        for part in (0.0, 0.5, 1.0):
            start = copy.move.dst_offset
            for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
                start += step * int((size - (width if axis == inner else 1)) * part)
            ranges[start, start + width] = None
    return sorted(ranges)


def _read(filler: Filler, start: int, stop: int, gatherer: Gatherer) -> Elements:
    made: Elements = np.empty(stop - start, numpy_dtype(filler.array.spec.dtype))
    filler.fill(start, stop, made.view(np.uint8), gatherer)
    return made


def _differ(weight: Elements, master: Elements, through: DType | None) -> Elements:
    """Which weights are not their masters rounded."""
    with np.errstate(all="ignore"):
        data = master if through is None else master.astype(numpy_dtype(through))
        made = data.astype(weight.dtype)
        wide = weight.astype(np.float64)
        # Processors may take what is too small for a normal number for zero.
        flushed = (wide == 0) & (np.abs(made.astype(np.float64)) < _least(weight))
        same: Elements = (made == weight) | (np.isnan(made) & np.isnan(weight)) | flushed
        if weight.dtype == numpy_dtype(DType.BF16) and master.dtype == np.float32:
            same |= _is_tie_upwards(weight, master)
    return np.logical_not(same)


def _are_far(weight: Elements, master: Elements, through: DType | None) -> int:
    """How many weights are not even neighbours of their masters.

    The weights of the step before often are; those of another run are not.
    """
    kind = weight.dtype if through is None else numpy_dtype(through)
    digits = _DIGITS[kind.name]
    with np.errstate(all="ignore"):
        wide = master.astype(np.float64)
        near = np.abs(weight.astype(np.float64) - wide) <= np.abs(wide) * 2.0**-digits
    return len(near) - int(np.count_nonzero(near))


def _is_tie_upwards(weight: Elements, master: Elements) -> Elements:
    """Which masters lie between two weights, and the weight is the upper one: so rounds an
    optimizer that keeps both halves of a master apart.
    """
    bits = master.view(np.uint32)
    upper = (bits >> np.uint32(16)) + np.uint32(1)
    found: Elements = ((bits & 0xFFFF) == 0x8000) & (upper == weight.view(np.uint16))
    return found


def _least(weight: Elements) -> float:
    """The least normal number of a type."""
    if weight.dtype == np.float16:
        return 2.0**-14
    return 2.0**-1022 if weight.dtype == np.float64 else 2.0**-126
