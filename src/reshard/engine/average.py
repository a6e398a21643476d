"""The mean of several places that hold the same box."""

from __future__ import annotations

import numpy as np

from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.engine.cast import find_cast, is_rounded, round_float64
from reshard.engine.elements import Elements, bits_dtype, numpy_dtype, widened
from reshard.engine.gather import Gatherer, source_at
from reshard.plan.plan import Copy, Origin


class NotAveragedError(Exception):
    """The places differ and hold numbers of which a mean means nothing."""


def average(
    copy: Copy, lo: tuple[int, ...], shape: tuple[int, ...], dtype: DType, gatherer: Gatherer
) -> Elements:
    """The mean over all places of a copy, taken in float64 and rounded once.

    Elements that are the same everywhere stay as they are, bit for bit.

    Args:  lo, shape: of a box in the copy.  dtype: of the result.
    Returns: a dense array of that shape.
    Raises: CastError, NotAveragedError.
    """
    origin = copy.origins[0]
    bits = bits_dtype(origin.dtype)
    first = read_box(origin, lo, shape, gatherer)
    same: Elements = np.ones(shape, np.bool_)
    total = widened(first)
    for other in copy.origins[1:]:
        data = read_box(other, lo, shape, gatherer)
        if other.dtype == origin.dtype:
            same &= first.view(bits) == data.view(bits)
        else:
            same[...] = False
        with np.errstate(all="ignore"):
            total += widened(data)
    cast = find_cast(origin.dtype, dtype)
    if same.all():
        return first if cast is None else cast(first)
    if not is_rounded(origin.dtype):
        raise NotAveragedError
    total /= len(copy.origins)  # in place: an array even if it has no axes
    made = round_float64(total, dtype)
    made[same] = first[same] if cast is None else cast(first[same])
    return made


def read_box(
    origin: Origin, lo: tuple[int, ...], shape: tuple[int, ...], gatherer: Gatherer
) -> Elements:
    """A box of a copy as one of its origins holds it.

    Returns: a dense array of the origin's type.
    """
    data: Elements = np.empty(shape, numpy_dtype(origin.dtype))
    gatherer.copy(
        origin,
        source_at(origin, lo),
        shape,
        data.reshape(-1).view(np.uint8).data,
        (0, row_major(shape)),
        bits_dtype(origin.dtype),
    )
    return data
