"""Parts of tensors as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any

from reshard.algebra.box import Box
from reshard.api.arguments import shown_value, whole_number
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.plan.build import build_array
from reshard.plan.slice import slice_spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from reshard.api.source import OpenedSource
    from reshard.plan.arrangement import Whole


def read_part(
    source: OpenedSource, whole: Whole, slices: Sequence[int | slice] | int | slice | None
) -> NDArray[Any]:
    """The elements that slices select.

    Raises: ReshardError[bad-slice], and what is wrong with the files.
    """
    import numpy as np

    from reshard.engine.compare import read_array

    box, after = _box(whole, _chosen(whole, slices))
    array = build_array(source.arrangement, slice_spec(whole, box))
    with source.files() as files:
        read = read_array(array, files).reshape(box.size)
    return np.ascontiguousarray(read[after]).reshape(read[after].shape)


def _chosen(
    whole: Whole, slices: Sequence[int | slice] | int | slice | None
) -> tuple[int | slice, ...]:
    """An index or a range for each of the first dimensions.

    Raises: ReshardError[bad-slice].
    """
    if slices is None:
        return ()
    items = _items(slices)
    indices = tuple(islice(items, len(whole.shape) + 1))  # an iterator need not end
    if len(indices) > len(whole.shape):
        count = f"{len(items)}" if isinstance(items, Sized) else f"more than {len(whole.shape)}"
        raise _bad(whole, f"{count} slices for {len(whole.shape)} dimensions")
    return tuple(_item(whole, dim, item) for dim, item in enumerate(indices))


def _items(slices: object) -> Iterable[object]:
    """What is given for each dimension; an array without dimensions is one index."""
    is_one = isinstance(slices, str | bytes | Mapping) or getattr(slices, "shape", None) == ()
    return slices if isinstance(slices, Iterable) and not is_one else (slices,)


def _item(whole: Whole, dim: int, item: object) -> int | slice:
    length = whole.shape[dim]
    if isinstance(item, slice):
        try:
            start, stop, step = item.indices(length)
        except (TypeError, ValueError):
            raise _bad(whole, f"{shown_value(item)} of dimension {dim}") from None
        if step < 1:
            raise _bad(whole, f"step {shown_value(step)} of dimension {dim}")
        return slice(start, stop, step)
    try:
        index = whole_number(item)
    except TypeError:
        raise _bad(whole, f"{shown_value(item)} of dimension {dim}") from None
    if not -length <= index < length:
        raise _bad(whole, f"index {shown_value(index)} of dimension {dim}, which has {length}")
    return index % length


def _box(whole: Whole, slices: Sequence[int | slice]) -> tuple[Box, tuple[int | slice, ...]]:
    """The smallest box around what is selected, and how to select from it."""
    lo, size = [], []
    after: list[int | slice] = []
    for dim, length in enumerate(whole.shape):
        item = slices[dim] if dim < len(slices) else slice(0, length, 1)
        if isinstance(item, int):
            lo.append(item)
            size.append(1)
            after.append(0)
        else:
            lo.append(item.start)
            size.append(max(0, item.stop - item.start))
            after.append(slice(None, None, item.step))
    return Box(tuple(lo), tuple(size)), tuple(after)


def _bad(whole: Whole, what: str) -> ReshardError:
    return ReshardError(
        Diagnostic(
            "bad-slice",
            f"`{whole.name}` ({whole.state}) cannot be read by {what}",
            notes=(f"its shape is {list(whole.shape)}",),
            helps=("give one index or one range with a step above 0 for each dimension",),
        ),
        Exit.USAGE,
    )
