"""How the shards of a parameter lie over tp ranks: the parts of a dimension as a rule, and
DeepSpeed's `affine_map`, pieces of a parameter on every rank.

Source: DeepSpeed 0.19.8, checkpoint/affine.py (format version 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import NamedTuple

from reshard.algebra.box import Box
from reshard.algebra.flat import cut
from reshard.algebra.piece import Move, Piece, moves, row_major
from reshard.errors import layout_error, source_error
from reshard.formats.deepspeed.node import Node
from reshard.plan.catalog import Coord, Fragment, LocalTensor

COPIED = "[...]"
"""Every rank has the whole tensor."""
AVERAGED = "[...] averaged over tp"
"""Every rank has a copy, and their mean counts."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

FORMAT_VERSION = 1
Shape = tuple[int, ...]

# A rule's right side.


@dataclass(frozen=True, slots=True)
class Section:
    """A part of one dimension.

    Args:  widths: elements on each tp rank; empty for a part that every rank holds whole.
           size: elements of the whole part.
    """

    size: int
    widths: tuple[int, ...] = ()

    def text(self, name: str, sized: bool) -> str:
        """The axis as UCL."""
        size = f":{self.size}" if sized else ""
        over = " over tp" if self.widths else ""
        is_even = len(set(self.widths)) <= 1
        return f"{name}{size}{over}{'' if is_even else f' as ({_listed(self.widths)})'}"


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))


def cut_body(
    dim: int,
    ndim: int,
    sections: Sequence[Section],
    *,
    outer: int = 1,
    inner: int = 1,
    truncated_to: int | None = None,
) -> str:
    """A tensor that is cut along one dimension.

    Args:  dim: which; ndim: of how many.  sections: what stands one behind the other along it.
           outer, inner: sizes of the axes around them in the same dimension.
           truncated_to: logical elements along dimension 0.
    """
    if len(sections) == 1:
        name = "rows" if dim == 0 else "columns" if dim == 1 else "planes"
        term = sections[0].text(name, sized=outer * inner > 1)
    else:
        letters = [*_LETTERS, *(f"part{index}" for index in range(26, len(sections)))]
        term = " + ".join(s.text(n, sized=True) for s, n in zip(sections, letters, strict=False))
        term = f"({term})"
    term = f"{f'outer:{outer} ' if outer > 1 else ''}{term}{f' inner:{inner}' if inner > 1 else ''}"
    dims = ["_"] * dim + [term]
    if truncated_to is not None:
        dims[0] = f"{term if dim == 0 else 'rows'} truncated to {truncated_to}"
    return f"[{', '.join([*dims, '...'] if ndim > dim + 1 else dims)}]"


def copied_body(ndim: int, truncated_to: int | None) -> str:
    """A tensor that every rank has whole."""
    if truncated_to is None or ndim == 0:
        return COPIED
    return f"[rows truncated to {truncated_to}{', ...' if ndim > 1 else ''}]"


# The map.


@dataclass(frozen=True, slots=True)
class AffinePiece:
    """Elements that lie in the whole parameter and in one rank's shard.

    Args:  shape: of the block.  source: offset and strides in the whole parameter, dest: in the
           shard, both in elements.  ranks: which hold this block.
    """

    shape: Shape
    source: tuple[int, Shape]
    dest: tuple[int, Shape]
    ranks: frozenset[int]

    def move(self) -> Move:
        """The same elements with the fewest axes."""
        box = Box.whole(self.shape)
        return moves(box, (Piece(box, *self.source),), Piece(box, *self.dest))[0]


@dataclass(frozen=True, slots=True)
class AffineMap:
    """How one parameter is spread over tp ranks.

    Args:  file: that says so.  shards: by rank, the shape of what it holds.  pieces: by rank.
    """

    name: str
    file: str
    shape: Shape
    shards: Mapping[int, Shape]
    pieces: Mapping[int, tuple[AffinePiece, ...]]

    def filled(self, rank: int) -> Iterator[AffinePiece]:
        """The pieces of a rank that have elements."""
        return (piece for piece in self.pieces[rank] if prod(piece.shape))


def read_affine_map(node: Node, name: str) -> AffineMap:
    """The map of a parameter.

    Raises: ReshardError[scaled-parameter | missing-key | unexpected-content].
    """
    ranks = {int(key): entry for key, entry in node.at("ranks").entries()}
    shards = {rank: entry.at("shard_shape").shape() for rank, entry in ranks.items()}
    pieces = {
        rank: tuple(_piece(item, name) for item in entry.at("pieces").items())
        for rank, entry in ranks.items()
    }
    return AffineMap(name, node.file, node.at("logical_shape").shape(), shards, pieces)


def _piece(node: Node, name: str) -> AffinePiece:
    scale = node.get("scale")
    if scale is not None and scale.value != 1:
        raise layout_error(
            "scaled-parameter",
            f"shards of `{name}` hold its elements times {scale.value}",
            notes=[f"`{scale.path}` in {node.file}"],
            helps=[
                "optimizer states cannot be scaled back without changing the training; fold the "
                "factor into the model and save again"
            ],
        )
    source, dest = (
        (address.item(0).integer(), address.item(1).shape())
        for address in (node.at("source"), node.at("dest"))
    )
    ranks = frozenset(node.at("locations").integers())
    return AffinePiece(node.at("shape").shape(), source, dest, ranks)


def check_affine_map(affine: AffineMap, local: Sequence[Shape]) -> None:
    """Check that a map speaks of these shards.

    Args:  local: shape of the parameter on every tp rank.
    Raises: ReshardError[affine-mismatch].
    """
    for rank, shape in enumerate(local):
        mapped = affine.shards.get(rank, ())
        numel = sum(prod(piece.shape) for piece in affine.pieces.get(rank, ()))
        if rank not in affine.shards or mapped != shape or numel != prod(shape):
            raise source_error(
                "affine-mismatch",
                f"the `affine_map` of `{affine.name}` is of another shard than the one on tp rank "
                f"{rank}",
                notes=[
                    f"shape {list(shape)} by `param_shapes`",
                    f"shape {list(mapped)} with {numel} elements in pieces by `affine_map` in "
                    f"{affine.file}",
                ],
                helps=["the files may be of different runs; copy those of one"],
            )


# As a rule.


class _Slab(NamedTuple):
    """A block `[start, start + width)` of one dimension, whole in the others.

    Args:  at: where it starts in the shard's dimension.  is_shared: whether every rank has it.
    """

    start: int
    width: int
    at: int
    is_shared: bool


def affine_body(affine: AffineMap) -> str | None:
    """The map as a rule's right side; None if no rule can say it."""
    if all(_is_whole(affine, rank) for rank in affine.pieces):
        return COPIED
    for dim in range(len(affine.shape)):
        sections = _sections(affine, dim)
        if sections is not None:
            return cut_body(dim, len(affine.shape), sections)
    return None


def _is_whole(affine: AffineMap, rank: int) -> bool:
    pieces = affine.pieces[rank]
    if affine.shards[rank] != affine.shape or len(pieces) != 1:
        return False
    move = pieces[0].move()
    return move.src_offset == move.dst_offset == 0 and move.src_strides == move.dst_strides


def _sections(affine: AffineMap, dim: int) -> list[Section] | None:
    """The parts of a dimension, if every piece is a block of it and blocks lie in rank order."""
    ranks = sorted(affine.pieces)
    slabs = {rank: _slabs(affine, rank, dim) for rank in ranks}
    holders: dict[tuple[int, int, bool], list[int]] = {}
    for rank, blocks in slabs.items():
        if blocks is None or _without(affine.shards[rank], dim) != _without(affine.shape, dim):
            return None
        for slab in blocks:
            holders.setdefault((slab.start, slab.width, slab.is_shared), []).append(rank)
    out: list[Section] = []
    end, last = 0, ranks[-1]
    for (start, width, is_shared), (rank, *others) in sorted(holders.items()):
        if start != end or len(others) != (len(ranks) - 1) * is_shared:
            return None
        end += width
        if is_shared:
            out.append(Section(width))
            last = ranks[-1]
            continue
        if rank <= last:
            out.append(Section(0, (0,) * len(ranks)))
        last = rank
        widths = [size + width * (at == rank) for at, size in enumerate(out[-1].widths)]
        out[-1] = Section(out[-1].size + width, tuple(widths))
    in_order = all(_in_order(out, rank, slabs[rank] or ()) for rank in ranks)
    return out if end == affine.shape[dim] and in_order else None


def _in_order(sections: Sequence[Section], rank: int, slabs: Iterable[_Slab]) -> bool:
    """Whether a shard has its blocks in the order of the sections."""
    widths = [section.widths[rank] if section.widths else section.size for section in sections]
    places = zip(accumulate(widths, initial=0), widths, strict=False)
    return [(slab.at, slab.width) for slab in slabs] == [(at, n) for at, n in places if n]


def _slabs(affine: AffineMap, rank: int, dim: int) -> list[_Slab] | None:
    """A rank's blocks of a dimension by start, neighbours joined; None if a piece is no block."""
    blocks = []
    for piece in affine.filled(rank):
        slab = _slab(affine, rank, piece, dim)
        if slab is None or piece.ranks not in ({rank}, frozenset(affine.pieces)):
            return None  # or some ranks have a copy and others not
        blocks.append(slab)
    out: list[_Slab] = []
    for slab in sorted(blocks):
        last = out[-1] if out else None
        if last and slab._replace(width=0) == _Slab(
            last.start + last.width, 0, last.at + last.width, last.is_shared
        ):
            out[-1] = last._replace(width=last.width + slab.width)
        else:
            out.append(slab)
    return out


def _slab(affine: AffineMap, rank: int, piece: AffinePiece, dim: int) -> _Slab | None:
    """The block of a dimension that a piece is, or None."""
    shape, shard = affine.shape, affine.shards[rank]
    width, odd = divmod(prod(piece.shape), prod(_without(shape, dim)))
    inner = prod(shape[dim + 1 :])
    if odd or piece.source[0] % inner or piece.dest[0] % inner:
        return None
    slab = _Slab(piece.source[0] // inner, width, piece.dest[0] // inner, len(piece.ranks) > 1)
    wanted = AffinePiece(
        (*shape[:dim], width, *shape[dim + 1 :]),
        (piece.source[0], row_major(shape)),
        (piece.dest[0], row_major(shard)),
        piece.ranks,
    )
    if slab.start + width > shape[dim] or slab.at + width > shard[dim]:
        return None
    return slab if wanted.move() == piece.move() else None


def _without(shape: Shape, dim: int) -> Shape:
    return (*shape[:dim], *shape[dim + 1 :])


# Where no rule can say it: put together from boxes, as the map has them.


def whole_tensors(
    tensors: Iterable[LocalTensor], maps: Mapping[str, AffineMap], tp: int
) -> list[LocalTensor]:
    """The tensors, with those of `maps` replaced by one whole tensor on every tp rank.

    The whole tensor of a rank has the blocks that this rank holds from its own shard, so that
    blocks which several ranks hold are compared.

    Args:  maps: by name.  tp: number of ranks.
    Raises: ReshardError[unsupported-affine-map].
    """
    shards: dict[tuple[str, str, Coord], dict[int, LocalTensor]] = {}
    out: list[LocalTensor] = []
    for tensor in tensors:
        if tensor.name not in maps or tensor.shape == ():
            out.append(tensor)
            continue
        rest = tuple(item for item in tensor.coord if item[0] != "tp")
        local = shards.setdefault((tensor.name, tensor.state, rest), {})
        local[dict(tensor.coord).get("tp", 0)] = tensor
        if len(local) == tp:
            out += _wholes(maps[tensor.name], local)
    return out


def _wholes(affine: AffineMap, shards: Mapping[int, LocalTensor]) -> Iterator[LocalTensor]:
    try:
        boxes = {rank: [_box(affine.shape, p) for p in affine.filled(rank)] for rank in shards}
    except ValueError as error:
        raise layout_error(
            "unsupported-affine-map",
            f"the `affine_map` of `{affine.name}` is of a form that is not read",
            notes=[f"it has {error}", f"in {affine.file}"],
            helps=["give a layout of your own with `--layout FILE`"],
        ) from None
    holders: dict[Box, list[int]] = {}
    for rank, pieces in boxes.items():
        for piece in pieces:
            holders.setdefault(piece.box, []).append(rank)
    for rank, shard in sorted(shards.items()):
        fragments: list[Fragment] = []
        for box, ranks in holders.items():
            source = rank if rank in ranks else ranks[0]
            for piece in boxes[source]:
                if piece.box == box:
                    fragments += _of_shard(piece, shards[source])
        name, state, coord = shard.name, shard.state, shard.coord
        yield LocalTensor(name, state, coord, affine.shape, shard.dtype, tuple(fragments))


def _box(shape: Shape, piece: AffinePiece) -> Piece:
    """A piece whose axes each step along one dimension of the parameter, in the shard.

    Raises: ValueError if it is no box.
    """
    whole = row_major(shape)
    lo, rest = [], piece.source[0]
    for stride in whole:
        index, rest = divmod(rest, stride) if stride else (0, rest)
        lo.append(index)
    size, strides = [1] * len(shape), [0] * len(shape)
    for length, step, dest in zip(piece.shape, piece.source[1], piece.dest[1], strict=True):
        if length == 1:
            continue
        dim = next((d for d, s in enumerate(whole) if s == step and shape[d] > 1), None)
        if dim is None or size[dim] != 1:
            raise ValueError("a piece that is no box")
        size[dim], strides[dim] = length, dest
    if any(a + n > b for a, n, b in zip(lo, size, shape, strict=True)):
        raise ValueError("a piece that runs out of the parameter")
    return Piece(Box(tuple(lo), tuple(size)), piece.dest[0], tuple(strides))


def _of_shard(piece: Piece, shard: LocalTensor) -> Iterator[Fragment]:
    """What the runs of a shard hold of a block."""
    itemsize = shard.dtype.itemsize
    for run in shard.fragments:
        if run.strides is None:
            for part in cut(piece, run.start, run.start + run.numel):
                at = run.byte_offset + (part.offset - run.start) * itemsize
                numel = part.box.volume
                yield Fragment(0, numel, run.file, at, part.strides, run.literal, part.box)
            continue
        # A shard that is not stored row-major: each step of the block is one of the shard's.
        offset, rest, steps = 0, piece.offset, {}
        for dense, stored in zip(row_major(shard.shape), run.strides, strict=True):
            index, rest = divmod(rest, dense) if dense else (0, rest)
            offset += index * stored
            steps[dense] = stored
        strides = tuple(steps.get(step, 0) for step in piece.strides)
        at = run.byte_offset + offset * itemsize
        yield Fragment(0, piece.box.volume, run.file, at, strides, None, piece.box)
