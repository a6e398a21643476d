"""Which part of a whole tensor the tensor of a file is, as the file says it, both ways.

    {"unsharded_shape": "(96, 32)",
     "local_global_slices_pairs": "0,32,None|None,None,None#64,96,None|None,None,None;32,40,..."}

Pairs are apart by `;`, local from global slices by `#`, dimensions by `|`; a slice is
`start,stop,step`.

Source: nanotron/parallel/parameters.py `SlicesPair`, nanotron/serialize/metadata.py (2411b02).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.errors import target_error
from reshard.plan.arrangement import Whole
from reshard.plan.recut import CutTensor

_VERSION, _SHAPE, _PAIRS = "version", "unsharded_shape", "local_global_slices_pairs"
VERSION = "1.5"
"""Of what is written."""
_SLICE = re.compile(r"(None|[0-9]{1,18}),(None|[0-9]{1,18}),(None|1)")
_SIZES = re.compile(r"\(((?:[0-9]{1,18}(?:, [0-9]{1,18})*,?)?)\)")
Shape = tuple[int, ...]


class SlicesError(ValueError):
    """Text that says nothing that can be."""


def read_slices(said: object, local: Shape) -> tuple[Shape, tuple[Piece, ...]]:
    """The shape of the whole tensor, and the boxes of it that a file holds, each with its address.

    Args:  local: shape of the file's tensor.
    Raises: SlicesError.
    """
    texts = said if isinstance(said, Mapping) else {}
    shape = parse_shape(str(texts.get(_SHAPE, "")))
    pairs = str(texts.get(_PAIRS, "")).split(";")
    return shape, tuple(_pair(item, local, shape) for item in pairs)


def parse_shape(text: str) -> Shape:
    """`(96, 32)`, also where numpy printed its integers as `np.int64(96)`."""
    match = _SIZES.fullmatch(re.sub(r"np\.int[0-9]*\(([0-9]+)\)", r"\1", text))
    if match is None:
        raise SlicesError(f"`{text}` is no shape")
    return tuple(int(item) for item in match[1].split(",") if item.strip())


def _pair(text: str, local: Shape, whole: Shape) -> Piece:
    first, mark, second = text.partition("#")
    if not mark:
        raise SlicesError(f"`{text}` is no pair of slices")
    here, there = _box(first, local), _box(second, whole)
    if here.size != there.size:
        raise SlicesError(f"`{text}` pairs {list(here.size)} with {list(there.size)} elements")
    strides = row_major(local)
    offset = sum(lo * stride for lo, stride in zip(here.lo, strides, strict=True))
    return Piece(there, offset, strides)


def _box(text: str, shape: Shape) -> Box:
    items = text.split("|")
    if len(items) != len(shape):
        raise SlicesError(f"`{text}` has {len(items)} dimensions, the tensor {len(shape)}")
    lo, size = [], []
    for item, length in zip(items, shape, strict=True):
        match = _SLICE.fullmatch(item)
        if match is None:
            raise SlicesError(f"`{item}` is no slice that can be read")
        start = 0 if match[1] == "None" else int(match[1])
        stop = length if match[2] == "None" else int(match[2])
        if not start <= stop <= length:
            raise SlicesError(f"`{item}` is not within {length}")
        lo.append(start)
        size.append(stop - start)
    return Box(tuple(lo), tuple(size))


def made_slices(
    whole: Whole, local: CutTensor, mesh: Mapping[str, int], over: Sequence[str]
) -> dict[str, str]:
    """What a file says of the part of a tensor that it holds.

    Args:  over: the axes that cut the tensor; () for one that is not cut, of which nothing is said.
    Raises: ReshardError[uneven-target].
    """
    if not over:
        return {}
    at = dict(local.coord)
    rank, ranks = 0, 1
    for axis in over:
        rank, ranks = rank * mesh[axis] + at.get(axis, 0), ranks * mesh[axis]
    shape = list(whole.shape)
    padded = [
        dim
        for dim, (here, size) in enumerate(zip(local.shape, whole.shape, strict=True))
        if prod(local.shape) * ranks > prod(whole.shape) and here * ranks > size and here != size
    ]
    if padded:  # the rows of padding are part of the whole tensor
        (dim,) = padded
        shape[dim] = local.shape[dim] * ranks
        lo = [rank * local.shape[dim] if item == dim else 0 for item in range(len(shape))]
        pairs = [(Box.whole(local.shape), Box(tuple(lo), local.shape))]
    else:
        held = local.segments[whole.state]
        pairs = [_both(whole, local, key, piece) for key, piece in held if piece.box.volume]
    texts = [f"{_show(here, local.shape)}#{_show(there, shape)}" for here, there in pairs]
    return {_VERSION: VERSION, _PAIRS: ";".join(texts), _SHAPE: str(tuple(shape))}


def _show(box: Box, shape: Sequence[int]) -> str:
    out = []
    for lo, size, length in zip(box.lo, box.size, shape, strict=True):
        full = lo == 0 and size == length
        out.append("None,None,None" if full else f"{lo},{lo + size},None")
    return "|".join(out)


def _both(whole: Whole, local: CutTensor, key: str, piece: Piece) -> tuple[Box, Box]:
    """The same elements as a box of the part and as one of the whole tensor."""
    there = next(item for name, item in whole.segments if name == key)
    first = piece.box.lo
    last = tuple(lo + size - 1 for lo, size in zip(first, piece.box.size, strict=True))
    here_box = _between(piece.at(first), piece.at(last), local.shape)
    there_box = _between(there.at(first), there.at(last), whole.shape)
    if here_box.volume != piece.box.volume or there_box.volume != piece.box.volume:
        raise target_error(
            "uneven-target",
            f"a shard of `{whole.name}` holds no box of it",
            notes=["files of this layout describe a shard by slices"],
            helps=["choose another `tp`"],
        )
    return here_box, there_box


def _between(first: int, last: int, shape: Sequence[int]) -> Box:
    lo, hi = _index(first, shape), _index(last, shape)
    return Box(lo, tuple(b - a + 1 for a, b in zip(lo, hi, strict=True)))


def _index(address: int, shape: Sequence[int]) -> Shape:
    out = []
    for stride in row_major(tuple(shape)):
        out.append(address // stride)
        address %= stride
    return tuple(out)
