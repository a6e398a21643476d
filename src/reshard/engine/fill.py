"""Makes any range of an array from the copies that a plan has for it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from reshard.algebra.box import Box
from reshard.algebra.flat import cut
from reshard.algebra.piece import Move, Piece
from reshard.engine.average import NotAveragedError, average
from reshard.engine.cast import Cast, CastError, find_cast
from reshard.engine.elements import Elements, bits_dtype, numpy_dtype
from reshard.engine.gather import Gatherer, blocks, source_at
from reshard.engine.mismatch import cast_refused, replica_mismatch
from reshard.plan.plan import Array, Copy, Origin
from reshard.store.source_files import SourceFiles

_Part = tuple[Copy, tuple[int, ...], tuple[int, ...], int]
"""A copy, the lower corner of a box in it, the box's shape, its address in the array."""


class _DifferenceError(Exception):
    """Two places that should agree do not."""


class Filler:
    """Writes ranges of one array; several threads may fill different ranges at once.

    Args:  array: with its copies.  files: where their origins lie.
    """

    def __init__(self, array: Array, files: SourceFiles) -> None:
        self.array = array
        self.files = files
        copies = sorted(
            (copy for copy in array.copies if copy.numel), key=lambda copy: copy.move.dst_offset
        )
        self._copies = copies
        self._starts = [copy.move.dst_offset for copy in copies]
        self._stops = [_stop(copy.move) for copy in copies]
        self._reach = list(accumulate(self._stops, max))

    @property
    def is_transposing(self) -> bool:
        """Whether a long range is cheaper than as many short ones: rows are columns of a source."""
        return any(
            move.src_strides[-1] > min(move.src_strides)
            for copy in self._copies
            for move in (copy.move,)
            if len(move.shape) > 1
        )

    def fill(self, start: int, stop: int, out: Any, gatherer: Gatherer | None = None) -> None:
        """Write the elements `[start, stop)` of the array, dense; what no copy makes is zero.

        Args:  out: a writable buffer of exactly the bytes of the range.
               gatherer: reused between calls of one thread; made here if not given.
        Raises: ReshardError[replica-mismatch | cast-refused | source-truncated | source-changed |
                source-unreadable].
        """
        spec = self.array.spec
        view = memoryview(out)
        if view.ndim != 1 or view.format != "B":
            view = view.cast("B")
        if not 0 <= start <= stop <= spec.numel:
            raise ValueError(f"range [{start}, {stop}) exceeds an array of {spec.numel} elements")
        if len(view) != (stop - start) * spec.dtype.itemsize:
            raise ValueError(f"{len(view)} bytes are not {stop - start} elements of {spec.dtype}")
        parts = self._parts(start, stop)
        if sum(prod(shape) for _, _, shape, _ in parts) != stop - start:
            np.frombuffer(view, np.uint8)[:] = 0
        if parts and gatherer is None:
            gatherer = Gatherer(self.files)
        for part in parts:
            assert gatherer is not None
            self._make(part, start, view, gatherer)

    def _parts(self, start: int, stop: int) -> list[_Part]:
        first = bisect_right(self._reach, start)
        last = bisect_left(self._starts, stop)
        return [
            (self._copies[i], *box)
            for i in range(first, last)
            if self._stops[i] > start
            for box in _boxes(self._copies[i].move, start, stop)
        ]

    def _make(self, part: _Part, start: int, out: memoryview, gatherer: Gatherer) -> None:
        copy, lo, shape, address = part
        spec = self.array.spec
        bits = bits_dtype(spec.dtype)
        dst = address - start, copy.move.dst_strides
        if copy.mode == "mean" and len(copy.origins) > 1:
            self._mean(copy, lo, shape, out, dst, gatherer)
            return
        origin = copy.origins[0]
        if origin.dtype == spec.dtype:
            gatherer.copy(origin, source_at(origin, lo), shape, out, dst, bits)
        else:
            self._convert(copy, origin, lo, shape, out, dst, gatherer)
        if copy.mode == "agree":
            for other in copy.origins[1:]:
                self._check(copy, other, lo, shape, out, dst, gatherer)

    def _convert(
        self,
        copy: Copy,
        origin: Origin,
        lo: tuple[int, ...],
        shape: tuple[int, ...],
        out: memoryview,
        dst: tuple[int, tuple[int, ...]],
        gatherer: Gatherer,
    ) -> None:
        dtype = self.array.spec.dtype

        def store(target: Elements, data: Elements) -> None:
            target[...] = cast(data)

        try:
            cast = _cast(origin, dtype)
            gatherer.visit(
                origin,
                source_at(origin, lo),
                numpy_dtype(origin.dtype),
                shape,
                out,
                dst,
                numpy_dtype(dtype),
                store,
            )
        except CastError as loss:
            raise cast_refused(self.array.spec, copy, origin, loss) from None

    def _check(
        self,
        copy: Copy,
        origin: Origin,
        lo: tuple[int, ...],
        shape: tuple[int, ...],
        out: memoryview,
        dst: tuple[int, tuple[int, ...]],
        gatherer: Gatherer,
    ) -> None:
        """Compare what was written with another place that holds it."""
        dtype = self.array.spec.dtype
        same = origin.dtype == dtype

        def check(target: Elements, data: Elements) -> None:
            found = data if same else cast(data).view(target.dtype)
            if not np.array_equal(target, found):
                raise _DifferenceError

        try:
            cast = _cast(origin, dtype)
            gatherer.visit(
                origin,
                source_at(origin, lo),
                bits_dtype(dtype) if same else numpy_dtype(origin.dtype),
                shape,
                out,
                dst,
                bits_dtype(dtype),
                check,
            )
            return
        except CastError as loss:
            raise cast_refused(self.array.spec, copy, origin, loss) from None
        except _DifferenceError:
            pass
        raise replica_mismatch(self.array.spec, copy, self.files)

    def _mean(
        self,
        copy: Copy,
        lo: tuple[int, ...],
        shape: tuple[int, ...],
        out: memoryview,
        dst: tuple[int, tuple[int, ...]],
        gatherer: Gatherer,
    ) -> None:
        """Write the mean of all places, in blocks that need little memory."""
        spec = self.array.spec
        bits = bits_dtype(spec.dtype)
        nbytes = bits.itemsize
        steps = tuple(step * nbytes for step in dst[1])
        target: Elements = np.ndarray(shape, bits, out, dst[0] * nbytes, steps)
        try:
            for inside, size in blocks(shape):
                at = tuple(a + b for a, b in zip(lo, inside, strict=True))
                made = average(copy, at, size, spec.dtype, gatherer)
                where = tuple(slice(a, a + n) for a, n in zip(inside, size, strict=True))
                target[where] = made.view(bits)
        except CastError as error:
            raise cast_refused(spec, copy, copy.origins[0], error) from None
        except NotAveragedError:
            pass
        else:
            return
        raise replica_mismatch(spec, copy, self.files, is_averaged=True)


def _cast(origin: Origin, dtype: Any) -> Cast:
    return find_cast(origin.dtype, dtype) or (lambda data: data)


def _stop(move: Move) -> int:
    """One past the last address that a copy writes."""
    steps = zip(move.shape, move.dst_strides, strict=True)
    return move.dst_offset + sum((size - 1) * step for size, step in steps) + 1


def _boxes(move: Move, start: int, stop: int) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """The boxes of a copy that lie in a range of the array: lower corner, shape, and address."""
    offset, shape = move.dst_offset, move.shape
    if start <= offset and _stop(move) <= stop:
        return [((0,) * len(shape), shape, offset)]
    if len(shape) == 1:
        step = move.dst_strides[0]
        first = max(0, -((offset - start) // step))
        last = min(shape[0], -((offset - stop) // step))
        return [((first,), (last - first,), offset + first * step)] if first < last else []
    piece = Piece(Box.whole(shape), offset, move.dst_strides)
    return [(p.box.lo, p.box.size, p.offset) for p in cut(piece, start, stop)]
