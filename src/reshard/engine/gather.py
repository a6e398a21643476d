"""Reads a strided box of a file into a strided box of a buffer, with few and bounded reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np

from reshard.engine.elements import Elements
from reshard.engine.join import read_joined
from reshard.plan.plan import Origin
from reshard.store.source_files import SourceFiles

SCRATCH_NBYTES = 1 << 20
"""The longest span that is read at once when not every element of it is wanted."""

GAP_NBYTES = 64 << 10
"""Unwanted bytes up to this many are read along: that is faster than a call to skip them."""

BLOCK_NUMEL = 1 << 16
"""Elements of a box that are held at once where sums or comparisons need arrays of their own."""

ROW_NBYTES = 32 << 10
"""Runs from this length on are read straight to where they go."""

_ROWS = 16

Deliver = Callable[[Elements, Elements], None]
"""`(target, data)`: both have the same shape; data lives only during the call."""


class Gatherer:
    """Reads boxes; owns one scratch buffer, so each thread needs its own."""

    def __init__(self, files: SourceFiles) -> None:
        self._files = files
        self._scratch: Elements | None = None

    def copy(
        self,
        origin: Origin,
        src: tuple[int, tuple[int, ...]],
        shape: tuple[int, ...],
        out: memoryview,
        dst: tuple[int, tuple[int, ...]],
        dtype: np.dtype[Any],
    ) -> None:
        """Copy a box unchanged.

        Args:  src, dst: offset and strides in elements, of the origin and of `out`.
               dtype: of both, any of the right size.
        """
        shape, steps, dst_steps = _ordered(shape, src[1], dst[1])
        nbytes = dtype.itemsize
        at = origin.byte_offset + src[0] * nbytes
        run = not shape or (len(shape) == 1 and steps[0] == dst_steps[0] == 1)
        if run and origin.literal is None:
            start = dst[0] * nbytes
            stop = start + (shape[0] if shape else 1) * nbytes
            self._pread(origin, at, out[start:stop])
            return
        target = _view(out, dtype, dst[0] * nbytes, shape, dst_steps)
        rows = shape and steps[-1] == dst_steps[-1] == 1 and shape[-1] * nbytes >= ROW_NBYTES
        if not rows or origin.literal is not None:
            self._read(origin, at, steps, dtype, target, _store)
            return
        width = shape[-1] * nbytes
        for index in product(*map(range, shape[:-1])):
            here = at + nbytes * sum(i * s for i, s in zip(index, steps, strict=False))
            start = nbytes * (dst[0] + sum(i * s for i, s in zip(index, dst_steps, strict=False)))
            self._pread(origin, here, out[start : start + width])

    def visit(
        self,
        origin: Origin,
        src: tuple[int, tuple[int, ...]],
        src_dtype: np.dtype[Any],
        shape: tuple[int, ...],
        out: memoryview,
        dst: tuple[int, tuple[int, ...]],
        dst_dtype: np.dtype[Any],
        deliver: Deliver,
    ) -> None:
        """Hand every element of a box to `deliver`, part by part, with the place where it belongs.

        Args:  src, dst: offset and strides in elements, of the origin and of `out`.
        """
        shape, steps, dst_steps = _ordered(shape, src[1], dst[1])
        at = origin.byte_offset + src[0] * src_dtype.itemsize
        target = _view(out, dst_dtype, dst[0] * dst_dtype.itemsize, shape, dst_steps)
        self._read(origin, at, steps, src_dtype, target, deliver)

    def _read(
        self,
        origin: Origin,
        at: int,
        steps: tuple[int, ...],
        dtype: np.dtype[Any],
        target: Elements,
        deliver: Deliver,
    ) -> None:
        """Args:  at: byte position of the first element.  steps: of the source, descending."""
        shape, nbytes = target.shape, dtype.itemsize
        widths = [1]  # elements from the first to the last of one index, from the inside out
        for size, step in zip(reversed(shape), reversed(steps), strict=True):
            widths.append(widths[-1] + (size - 1) * step)
        if origin.literal is not None:
            data = _view(memoryview(origin.literal), dtype, at, shape, steps)
            deliver(target, data)
            return
        span = widths.pop()
        limit = SCRATCH_NBYTES // nbytes
        sparse = any(
            (step - width) * nbytes > GAP_NBYTES
            for step, width in zip(steps, reversed(widths), strict=True)
        )
        if span <= limit and not sparse:
            deliver(target, self._span(origin, at, dtype, span, shape, steps))
            return
        step = steps[0]
        count = 1 if sparse else max(1, (limit - widths[-1]) // step + 1)
        for index in range(0, shape[0], count):
            here = at + index * step * nbytes
            if count == 1:
                self._read(origin, here, steps[1:], dtype, target[index, ...], deliver)
            else:
                part = target[index : index + count]
                self._read(origin, here, steps, dtype, part, deliver)

    def _span(
        self,
        origin: Origin,
        at: int,
        dtype: np.dtype[Any],
        span: int,
        shape: tuple[int, ...],
        steps: tuple[int, ...],
    ) -> Elements:
        if self._scratch is None:
            self._scratch = np.empty(SCRATCH_NBYTES, np.uint8)
        scratch = self._scratch.data
        self._pread(origin, at, scratch[: span * dtype.itemsize])
        return _view(scratch, dtype, 0, shape, steps)

    def _pread(self, origin: Origin, at: int, out: memoryview) -> None:
        """Bytes of an origin from `at` on, as if its elements lay in its file as what they are."""
        if origin.upper is None:
            self._files.pread_into(origin.file, at, out)
        else:
            read_joined(origin, origin.upper, at, out, self._files)


def _store(target: Elements, data: Elements) -> None:
    if target.ndim < 2 or target.strides[0] >= target.strides[-1]:
        target[...] = data
        return
    for row in range(0, len(target), _ROWS):  # a transpose: few lines of the cache at a time
        target[row : row + _ROWS] = data[row : row + _ROWS]


def _view(
    buffer: memoryview,
    dtype: np.dtype[Any],
    byte_offset: int,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
) -> Elements:
    return np.ndarray(
        shape, dtype, buffer, byte_offset, tuple(step * dtype.itemsize for step in steps)
    )


def _ordered(
    shape: tuple[int, ...], steps: tuple[int, ...], dst_steps: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The same box with its axes by descending source stride, and as few of them as can be."""
    axes = sorted(
        (axis for axis in zip(steps, dst_steps, shape, strict=True) if axis[2] != 1), reverse=True
    )
    out: list[tuple[int, int, int]] = []
    for step, dst_step, size in axes:
        if out and out[-1][0] == step * size and out[-1][1] == dst_step * size:
            size *= out.pop()[2]
        out.append((step, dst_step, size))
    return tuple(a[2] for a in out), tuple(a[0] for a in out), tuple(a[1] for a in out)


def source_at(origin: Origin, lo: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Address and strides, in an origin, of the box of its copy that begins at `lo`."""
    move = origin.move
    inside = sum(x * step for x, step in zip(lo, move.src_strides, strict=True))
    return move.src_offset + inside, move.src_strides


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Boxes of at most `BLOCK_NUMEL` elements that make up a shape, in row-major order."""
    if prod(shape) <= BLOCK_NUMEL:
        yield (0,) * len(shape), shape
        return
    inner = prod(shape[1:])
    rows = max(1, BLOCK_NUMEL // inner)
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        if count * inner <= BLOCK_NUMEL:
            yield (start, *(0,) * (len(shape) - 1)), (count, *shape[1:])
        else:
            for lo, size in blocks(shape[1:]):
                yield (start, *lo), (1, *size)
