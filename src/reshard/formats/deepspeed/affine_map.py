"""DeepSpeed's `affine_map`: pieces of a parameter on every tp rank, as a rule where one fits.

Source: DeepSpeed 0.19.8, checkpoint/affine.py (format version 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import Move, Piece, moves, row_major
from reshard.errors import layout_error, source_error
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.ucl_text import COPIED, Section, cut_body
from reshard.records import dataclass, replace

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class AffinePiece:
    """Elements that lie in the whole parameter and in one rank's shard.

    Args:  shape: of the block.  source: offset and strides in the whole parameter, dest: in the
           shard, both in elements.  ranks: which hold this block.
    """

    shape: tuple[int, ...]
    source: tuple[int, tuple[int, ...]]
    dest: tuple[int, tuple[int, ...]]
    ranks: frozenset[int]

    def move(self) -> Move:
        """The same elements with the fewest axes."""
        box = Box((0,) * len(self.shape), self.shape)
        return moves(box, (Piece(box, *self.source),), Piece(box, *self.dest))[0]


@dataclass(frozen=True, slots=True)
class AffineMap:
    """How one parameter is spread over tp ranks.

    Args:  shards: by rank, the shape of what it holds.  pieces: by rank.
    """

    shape: tuple[int, ...]
    shards: Mapping[int, tuple[int, ...]]
    pieces: Mapping[int, tuple[AffinePiece, ...]]


@dataclass(frozen=True, slots=True)
class _Slab:
    """A block `[start, start + width)` of one dimension, whole in the others.

    Args:  at: where it starts in the shard's dimension.  is_shared: whether every rank has it.
    """

    start: int
    width: int
    at: int
    is_shared: bool

    def reaches(self, other: _Slab) -> bool:
        """Whether the other one goes on where this one ends, in both places."""
        return (
            self.start + self.width == other.start
            and self.at + self.width == other.at
            and self.is_shared == other.is_shared
        )


def read_affine_map(node: Node, name: str) -> AffineMap:
    """One parameter's map.

    Args:  name: of the parameter, for messages.
    Raises: ReshardError[scaled-parameter | missing-key | unexpected-content].
    """
    shards: dict[int, tuple[int, ...]] = {}
    pieces: dict[int, tuple[AffinePiece, ...]] = {}
    for key, entry in node.at("ranks").entries():
        rank = int(key)
        shards[rank] = entry.at("shard_shape").shape()
        pieces[rank] = tuple(_piece(item, name) for item in entry.at("pieces").items())
    return AffineMap(node.at("logical_shape").shape(), shards, pieces)


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
    return AffinePiece(
        node.at("shape").shape(),
        _address(node.at("source")),
        _address(node.at("dest")),
        frozenset(item.integer() for item in node.at("locations").items()),
    )


def _address(node: Node) -> tuple[int, tuple[int, ...]]:
    return node.item(0).integer(), node.item(1).shape()


def check_affine_map(
    found: AffineMap, name: str, local: Sequence[tuple[int, ...]], file: str
) -> None:
    """Check that a map speaks of these shards.

    Args:  local: shape of the parameter on every tp rank.
    Raises: ReshardError[affine-mismatch].
    """
    for rank, shape in enumerate(local):
        held = sum(prod(piece.shape) for piece in found.pieces.get(rank, ()))
        if found.shards.get(rank) != shape or held != prod(shape):
            raise source_error(
                "affine-mismatch",
                f"the `affine_map` of `{name}` is of another shard than the one on tp rank {rank}",
                notes=[
                    f"shape {list(shape)} by `param_shapes`",
                    f"shape {list(found.shards.get(rank, ()))} with {held} elements in pieces "
                    f"by `affine_map` in {file}",
                ],
                helps=["the files may be of different runs; copy those of one"],
            )


def affine_body(found: AffineMap) -> str | None:
    """The map as a rule's right side; None if no rule can say it."""
    if all(_is_whole(found, rank) for rank in found.pieces):
        return COPIED
    for dim in range(len(found.shape)):
        sections = _sections(found, dim)
        if sections is not None:
            return cut_body(dim, len(found.shape), sections)
    return None


def shard_boxes(found: AffineMap, rank: int) -> Iterator[tuple[Box, int, tuple[int, ...]]]:
    """Every piece of a rank as a box of the whole parameter, with its address in the shard.

    Raises: ValueError if a piece is no box.
    """
    for piece in found.pieces[rank]:
        if prod(piece.shape):
            yield from _boxes(found.shape, piece)


def _boxes(
    shape: tuple[int, ...], piece: AffinePiece
) -> Iterator[tuple[Box, int, tuple[int, ...]]]:
    """A piece whose axes each step along one dimension of the parameter."""
    lo = []
    left = piece.source[0]
    for stride in row_major(shape):
        lo.append(left // stride if stride else 0)
        left -= lo[-1] * stride
    size = [1] * len(shape)
    strides = [0] * len(shape)
    whole = row_major(shape)
    for length, step, dest in zip(piece.shape, piece.source[1], piece.dest[1], strict=True):
        if length == 1:
            continue
        dim = next((d for d, s in enumerate(whole) if s == step and shape[d] > 1), None)
        if dim is None or size[dim] != 1:
            raise ValueError("a piece that is no box")
        size[dim] = length
        strides[dim] = dest
    if any(a + n > b for a, n, b in zip(lo, size, shape, strict=True)):
        raise ValueError("a piece that runs out of the parameter")
    yield Box(tuple(lo), tuple(size)), piece.dest[0], tuple(strides)


def _is_whole(found: AffineMap, rank: int) -> bool:
    pieces = found.pieces[rank]
    if found.shards[rank] != found.shape or len(pieces) != 1:
        return False
    move = pieces[0].move()
    return move.src_offset == move.dst_offset == 0 and move.src_strides == move.dst_strides


def _sections(found: AffineMap, dim: int) -> list[Section] | None:
    """The parts of a dimension, if every piece is a block of it and blocks lie in rank order."""
    ranks = sorted(found.pieces)
    rest = _without(found.shape, dim)
    if any(_without(found.shards[rank], dim) != rest for rank in ranks):
        return None
    slabs = {rank: _slabs(found, rank, dim) for rank in ranks}
    holders: dict[tuple[int, int, bool], list[int]] = {}
    for rank, own in slabs.items():
        for slab in [] if own is None else own:
            holders.setdefault((slab.start, slab.width, slab.is_shared), []).append(rank)
    if None in slabs.values() or any(
        len(own) != (len(ranks) if is_shared else 1) for (_, _, is_shared), own in holders.items()
    ):
        return None
    out: list[Section] = []
    at, last = 0, ranks[-1]
    for (start, width, is_shared), (rank, *_) in sorted(holders.items()):
        if start != at:
            return None
        at += width
        if is_shared:
            out.append(Section(width))
            last = ranks[-1]
            continue
        if rank <= last:
            out.append(Section(0, (0,) * len(ranks)))
        widths = list(out[-1].widths)
        widths[rank] = width
        out[-1] = Section(out[-1].size + width, tuple(widths))
        last = rank
    is_whole = at == found.shape[dim]
    return out if is_whole and all(_in_order(out, rank, slabs[rank]) for rank in ranks) else None


def _in_order(sections: Sequence[Section], rank: int, slabs: Sequence[_Slab] | None) -> bool:
    """Whether a shard has its blocks in the order of the sections."""
    widths = [section.widths[rank] if section.widths else section.size for section in sections]
    ends = list(accumulate(widths))
    wanted = [(end - width, width) for end, width in zip(ends, widths, strict=True) if width]
    return [(slab.at, slab.width) for slab in slabs or ()] == wanted


def _slabs(found: AffineMap, rank: int, dim: int) -> list[_Slab] | None:
    """A rank's blocks of a dimension by start, neighbours joined; None if a piece is no block."""
    everyone = frozenset(found.pieces)
    blocks = []
    for piece in found.pieces[rank]:
        if not prod(piece.shape):
            continue
        slab = _slab(found, rank, piece, dim)
        if slab is None or piece.ranks not in ({rank}, everyone):
            return None  # or some ranks have a copy and others not
        blocks.append(slab)
    out: list[_Slab] = []
    for slab in sorted(blocks, key=lambda slab: slab.start):
        if out and out[-1].reaches(slab):
            out[-1] = replace(out[-1], width=out[-1].width + slab.width)
        else:
            out.append(slab)
    return out


def _slab(found: AffineMap, rank: int, piece: AffinePiece, dim: int) -> _Slab | None:
    """The block of a dimension that a piece is, or None."""
    shape, shard = found.shape, found.shards[rank]
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


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])
