"""A catalog of whole tensors: what a layout without a model joined, for the layout of a model.

The layout of a model may be unable to say how a checkpoint is cut, though the checkpoint's own one
does: two heads whose rows lie on four ranks, for example. Its whole tensors are then read through
the layout of the model as if one rank had written them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from reshard.algebra.box import Box
from reshard.algebra.piece import Move, Piece, row_major
from reshard.language import load_layout
from reshard.plan.arrangement import SCALAR, Arrangement, StoredPart, Whole
from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor, Upper
from reshard.plan.runs import FragmentRuns
from reshard.run.states import EXTRA

COPY = "dp"
"""The mesh axis of copies, which no layout cuts a weight over."""

Shape = tuple[int, ...]
_LAYOUT = """\
# Whole tensors, as the checkpoint's own layout joins them.
layout {name} {{
    mesh dp

    "**" = [...] optional
}}
"""


def consolidated(arrangement: Arrangement) -> Catalog | None:
    """The catalog of an arrangement without a model, as if every tensor were whole on one rank.

    None where a whole tensor is not made of boxes of stored ones.
    """
    catalog = arrangement.catalog
    tensors = [tensor for tensor in catalog.tensors if tensor.state == EXTRA]
    copies = 1
    for whole in arrangement.wholes:
        if whole.state == EXTRA:
            continue
        made = _copies(arrangement, whole)
        if made is None:
            return None
        copies = max(copies, len(made))
        tensors += made
    return replace(
        catalog,
        tensors=tuple(tensors),
        mesh={COPY: copies} if copies > 1 else {},
        layout=load_layout(_LAYOUT.format(name=catalog.layout.name), "whole tensors"),
    )


def _copies(arrangement: Arrangement, whole: Whole) -> list[LocalTensor] | None:
    """One local tensor for each copy that is stored of a whole one."""
    found: dict[Coord, list[Fragment]] = {}
    for key, piece in whole.segments:
        for part in arrangement.parts.get((key, whole.state), ()):
            if part.whole != whole.name:
                continue
            fragments = found.setdefault(part.replica, [])
            if key.endswith(SCALAR):
                fragments += part.fragments[:1] if not fragments else ()
                continue
            boxes = _boxes(part, piece, whole)
            if boxes is None:
                return None
            fragments += boxes
    single = len(found) == 1
    return [
        LocalTensor(
            whole.name,
            whole.state,
            () if single else ((COPY, index),),
            whole.shape,
            whole.dtype,
            tuple(fragments),
        )
        for index, fragments in enumerate(found.values())
    ]


def _boxes(part: StoredPart, piece: Piece, whole: Whole) -> list[Fragment] | None:
    """What a stored part holds, as boxes of the whole tensor."""
    box = part.piece.box.intersect(piece.box)
    if box is None or not box.volume:
        return []
    src, dst = part.piece.restrict(box), piece.restrict(box)
    steps = row_major(whole.shape)
    dims: list[int] = []
    sizes, inner, outer = _joined(box.size, src.strides, dst.strides, steps)
    for size, stride in zip(sizes, outer, strict=True):
        fitting = [d for d, step in enumerate(steps) if step == stride and whole.shape[d] >= size]
        fitting = [d for d in fitting if d not in dims]
        if not fitting:
            return None
        dims.append(fitting[0] if size == 1 else max(fitting, key=lambda d: whole.shape[d]))
    move = Move(sizes, src.offset, inner, dst.offset, outer)
    return list(_fragments(part, move, dims, whole))


def _joined(sizes: Shape, inner: Shape, outer: Shape, steps: Shape) -> tuple[Shape, Shape, Shape]:
    """Axes of one dimension, heads and what is in them, as one axis where they lie together.

    Args:  inner, outer: strides where it is stored, and in the whole tensor.
           steps: strides of the whole tensor's dimensions.
    """
    out: list[tuple[int, int, int]] = []
    for size, near, far in zip(sizes, inner, outer, strict=True):
        if out and out[-1][1:] == (near * size, far * size) and out[-1][2] not in steps:
            out[-1] = (out[-1][0] * size, near, far)
        else:
            out.append((size, near, far))
    return (
        tuple(size for size, _, _ in out),
        tuple(near for _, near, _ in out),
        tuple(far for _, _, far in out),
    )


def _fragments(part: StoredPart, move: Move, dims: list[int], whole: Whole) -> Iterator[Fragment]:
    itemsize = part.dtype.itemsize
    for fragment, box in FragmentRuns(part.fragments).boxes(move):
        at = move.src_offset - fragment.start
        at += sum(x * step for x, step in zip(box.lo, move.src_strides, strict=True))
        address = move.dst_offset
        address += sum(x * step for x, step in zip(box.lo, move.dst_strides, strict=True))
        size = [1] * len(whole.shape)
        strides = [0] * len(whole.shape)
        for axis, d in enumerate(dims):
            size[d], strides[d] = box.size[axis], move.src_strides[axis]
        yield _fragment(fragment, at, itemsize, _lo(address, whole.shape), size, strides)


def _fragment(
    fragment: Fragment,
    at: int,
    itemsize: int,
    lo: tuple[int, ...],
    size: list[int],
    strides: list[int],
) -> Fragment:
    upper = fragment.upper
    if upper is not None:
        itemsize = upper.dtype.itemsize
        upper = Upper(upper.file, upper.byte_offset + 2 * at, upper.dtype)
    box = Box(lo, tuple(size))
    steps = tuple(
        s if n > 1 else d for s, n, d in zip(strides, size, row_major(box.size), strict=True)
    )
    dense = None if steps == row_major(box.size) else steps
    literal, start = fragment.literal, fragment.byte_offset + at * itemsize
    return Fragment(0, box.volume, fragment.file, start, dense, literal, box, upper)


def _lo(address: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of an element of a row-major tensor."""
    out = []
    for size in reversed(shape):
        address, index = divmod(address, size)
        out.append(index)
    return tuple(reversed(out))
