"""Parts of tensors as numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reshard.algebra.box import Box
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
    from reshard.engine.source_files import SourceFiles

    chosen: Sequence[int | slice] = (
        () if slices is None else (slices,) if isinstance(slices, int | slice) else tuple(slices)
    )
    box, after = _box(whole, chosen)
    array = build_array(source.arrangement, slice_spec(whole, box))
    with SourceFiles(source.catalog.root, source.catalog.files) as files:
        read = read_array(array, files).reshape(box.size)
    return np.ascontiguousarray(read[after]).reshape(read[after].shape)


def _box(whole: Whole, slices: Sequence[int | slice]) -> tuple[Box, tuple[int | slice, ...]]:
    """The smallest box around what is selected, and how to select from it."""
    if len(slices) > len(whole.shape):
        raise _bad(whole, f"{len(slices)} slices for {len(whole.shape)} dimensions")
    lo, size = [], []
    after: list[int | slice] = []
    for dim, length in enumerate(whole.shape):
        item = slices[dim] if dim < len(slices) else slice(None)
        if isinstance(item, int):
            if not -length <= item < length:
                raise _bad(whole, f"index {item} of dimension {dim}, which has {length}")
            lo.append(item % length)
            size.append(1)
            after.append(0)
            continue
        start, stop, step = item.indices(length)
        if step < 1:
            raise _bad(whole, f"step {step} of dimension {dim}")
        lo.append(start)
        size.append(max(0, stop - start))
        after.append(slice(None, None, step))
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
