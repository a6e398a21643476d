"""Which part of a whole tensor a shard holds, as nanotron writes it beside the shard.

    0,32,None|None,None,None#64,96,None|None,None,None;32,40,None|...

Pairs are apart by `;`, local from global slices by `#`, dimensions by `|`; a slice is
`start,stop,step`.

Source: nanotron/parallel/parameters.py `SlicesPair`, nanotron/serialize/metadata.py (2411b02).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from reshard.algebra.box import Box
from reshard.algebra.partition import Each, spread
from reshard.algebra.piece import Piece, row_major

_SLICE = re.compile(r"(None|[0-9]{1,18}),(None|[0-9]{1,18}),(None|1)")
_SHAPE = re.compile(r"\(((?:[0-9]{1,18}(?:, [0-9]{1,18})*,?)?)\)")


def data_ranges(numel: int, ranks: int) -> list[tuple[int, int]]:
    """The half-open range of a shard's flat elements that each data-parallel rank has (ZeRO-1)."""
    ends = [0, *accumulate(spread(Each("balanced"), [(numel,)], ranks).lengths)]
    return list(pairwise(ends))


class SlicesError(ValueError):
    """Text that says nothing that can be."""


def parse_shape(text: str) -> tuple[int, ...]:
    """`(96, 32)`, also where numpy printed its integers as `np.int64(96)`.

    Raises: SlicesError.
    """
    match = _SHAPE.fullmatch(re.sub(r"np\.int[0-9]*\(([0-9]+)\)", r"\1", text))
    if match is None:
        raise SlicesError(f"`{text}` is no shape")
    return tuple(int(item) for item in match[1].split(",") if item.strip())


def parse_pairs(text: str, local: Sequence[int], whole: Sequence[int]) -> tuple[Piece, ...]:
    """The boxes of the whole tensor that a shard holds, each with its address in the shard.

    Args:  local, whole: shapes.
    Raises: SlicesError.
    """
    return tuple(_pair(item, tuple(local), tuple(whole)) for item in text.split(";"))


def show_pairs(pairs: Iterable[tuple[Box, Box]], local: Sequence[int], whole: Sequence[int]) -> str:
    """The text of pairs of a box of a shard and one of the whole tensor.

    Args:  local, whole: shapes.
    """
    return ";".join(f"{_show(here, local)}#{_show(there, whole)}" for here, there in pairs)


def _show(box: Box, shape: Sequence[int]) -> str:
    out = []
    for lo, size, length in zip(box.lo, box.size, shape, strict=True):
        full = lo == 0 and size == length
        out.append("None,None,None" if full else f"{lo},{lo + size},None")
    return "|".join(out)


def _pair(text: str, local: tuple[int, ...], whole: tuple[int, ...]) -> Piece:
    first, mark, second = text.partition("#")
    if not mark:
        raise SlicesError(f"`{text}` is no pair of slices")
    here, there = _box(first, local), _box(second, whole)
    if here.size != there.size:
        raise SlicesError(f"`{text}` pairs {list(here.size)} with {list(there.size)} elements")
    strides = row_major(local)
    offset = sum(lo * stride for lo, stride in zip(here.lo, strides, strict=True))
    return Piece(there, offset, strides)


def _box(text: str, shape: tuple[int, ...]) -> Box:
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
