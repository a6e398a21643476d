"""Arrays as whole values: read one, digest one, compare two, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from reshard.engine.elements import (
    Elements,
    bits_dtype,
    max_difference,
    max_ulps,
    numpy_dtype,
    show_element,
    widened,
)
from reshard.engine.fill import Filler
from reshard.engine.gather import Gatherer
from reshard.engine.locate import Place, locate
from reshard.engine.units import window_numel
from reshard.plan.plan import Array, ArraySpec
from reshard.store.digest import new_digest
from reshard.store.source_files import SourceFiles

_WINDOW_NBYTES = 1 << 20

_N = TypeVar("_N", int, float)


@dataclass(frozen=True, slots=True)
class Difference:
    """How two arrays differ.

    Args:  what: "shape" (nothing was read), "dtype" (values were compared), or "values" (bits were
                 compared).
           numel: of the left one.  numel_different: how many elements differ.
           first_index: of the first one, flat and row-major; 0 if none differs.
           max_abs: largest absolute difference in float64; None where no pair has a finite one.
           max_ulp: the same in steps of the element type; None for whole numbers and other types.
           first: what each side has there, if anything differs.
    """

    what: Literal["shape", "dtype", "values"]
    numel: int
    numel_different: int
    first_index: int
    max_abs: float | None
    max_ulp: int | None = None
    first: tuple[Seen, Seen] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One element as one side has it.

    Args:  value: with its bits, e.g. `0.05 (0x3d4ccccd)`.
           place: where it lies; None for padding.
    """

    value: str
    place: Place | None


def compare(
    left: Array, left_files: SourceFiles, right: Array, right_files: SourceFiles
) -> Difference | None:
    """How two arrays differ, or None when they are the same bit for bit.

    Raises: ReshardError of either source, as `Filler.fill`.
    """
    one, other = left.spec, right.spec
    if _shape(one) != _shape(other):
        return Difference("shape", one.numel, 0, 0, None)
    sides = ((Filler(left, left_files), left_files), (Filler(right, right_files), right_files))
    step = min(window_numel(filler, _WINDOW_NBYTES) for filler, _ in sides)
    gatherers = [Gatherer(files) for _, files in sides]
    buffers: list[Elements] = [
        np.empty(min(step, one.numel), numpy_dtype(spec.dtype)) for spec in (one, other)
    ]
    count, first = 0, 0
    largest: float | None = None
    steps: int | None = None
    seen: tuple[Seen, Seen] | None = None
    for start in range(0, one.numel, step):
        stop = min(start + step, one.numel)
        a, b = (buffer[: stop - start] for buffer in buffers)
        for (filler, _), gatherer, data in zip(sides, gatherers, (a, b), strict=True):
            filler.fill(start, stop, data.view(np.uint8), gatherer)
        differ = _differ(a, b, one.dtype == other.dtype and bits_dtype(one.dtype))
        where = np.flatnonzero(differ)
        if not len(where):
            continue
        if not count:
            at = int(where[0])
            first = start + at
            seen = (
                Seen(show_element(a[at : at + 1]), locate(left, first)),
                Seen(show_element(b[at : at + 1]), locate(right, first)),
            )
        count += len(where)
        largest = _larger(largest, max_difference(a[where], b[where]))
        if one.dtype == other.dtype:
            steps = _larger(steps, max_ulps(a[where], b[where]))
    if one.dtype != other.dtype:
        return Difference("dtype", one.numel, count, first, largest, None, seen)
    if not count:
        return None
    return Difference("values", one.numel, count, first, largest, steps, seen)


def digest_array(array: Array, files: SourceFiles) -> str:
    """The digest of an array's bytes, as it would be written.

    Raises: ReshardError, as `Filler.fill`.
    """
    filler, gatherer, digest = Filler(array, files), Gatherer(files), new_digest()
    step = window_numel(filler, _WINDOW_NBYTES)
    itemsize = array.spec.dtype.itemsize
    buffer = np.empty(min(step, array.spec.numel) * itemsize, np.uint8).data
    for start in range(0, array.spec.numel, step):
        stop = min(start + step, array.spec.numel)
        data = buffer[: (stop - start) * itemsize]
        filler.fill(start, stop, data, gatherer)
        digest.update(data)
    return digest.text()


def read_array(array: Array, files: SourceFiles) -> Elements:
    """An array of its shape and type; `ml_dtypes` has the types that numpy lacks.

    Raises: ReshardError, as `Filler.fill`.
    """
    spec = array.spec
    out: Elements = np.empty(spec.numel, numpy_dtype(spec.dtype))
    filler, gatherer = Filler(array, files), Gatherer(files)
    step = window_numel(filler, _WINDOW_NBYTES)
    for start in range(0, spec.numel, step):
        stop = min(start + step, spec.numel)
        filler.fill(start, stop, out[start:stop].view(np.uint8), gatherer)
    return out.reshape(_shape(spec))


def _larger(known: _N | None, found: _N | None) -> _N | None:
    return found if known is None else known if found is None else max(known, found)


def _shape(spec: ArraySpec) -> tuple[int, ...]:
    return spec.shape if spec.shape is not None else (spec.numel,)


def _differ(a: Elements, b: Elements, bits: np.dtype[np.generic] | Literal[False]) -> Elements:
    if bits:
        out: Elements = a.view(bits) != b.view(bits)
        return out
    x, y = widened(a), widened(b)
    differ: Elements = (x != y) & ~(np.isnan(x) & np.isnan(y))
    return differ
