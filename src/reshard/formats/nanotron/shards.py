"""The shards of weights that are to be written, and what nanotron says beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.errors import target_error
from reshard.formats.nanotron.slices import show_pairs
from reshard.plan.arrangement import Whole
from reshard.plan.lay_out import LaidTensor

VERSION = "1.5"


@dataclass(frozen=True, slots=True)
class OutShard:
    """What one tensor-parallel rank holds of a weight.

    Args:  metadata: of its file; none where the tensor is not cut.
    """

    laid: LaidTensor
    metadata: dict[str, str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the shard, padding included."""
        return self.laid.shape


def out_shard(whole: Whole, laid: LaidTensor, tp: int, ranks: int, *, is_cut: bool) -> OutShard:
    """A shard with its metadata.

    Args:  is_cut: whether the layout cuts such tensors over tp, be there one rank or more.
    Raises: ReshardError[uneven-target].
    """
    if not is_cut:
        return OutShard(laid, {})
    padded = [
        axis
        for axis, (here, size) in enumerate(zip(laid.shape, whole.shape, strict=True))
        if prod(laid.shape) * ranks > prod(whole.shape) and here * ranks > size and here != size
    ]
    shape = list(whole.shape)
    if padded:
        (axis,) = padded
        shape[axis] = laid.shape[axis] * ranks
        lo = [tp * laid.shape[axis] if item == axis else 0 for item in range(len(shape))]
        pairs = [(Box.whole(laid.shape), Box(tuple(lo), laid.shape))]
    else:
        pairs = [_pair(whole, laid, key, piece) for key, piece in laid.segments if piece.box.volume]
    metadata = {
        "version": VERSION,
        "local_global_slices_pairs": show_pairs(pairs, laid.shape, shape),
        "unsharded_shape": str(tuple(shape)),
    }
    return OutShard(laid, metadata)


def _pair(whole: Whole, laid: LaidTensor, key: str, piece: Piece) -> tuple[Box, Box]:
    """The same elements as a box of the shard and as one of the whole tensor."""
    there = next(item for name, item in whole.segments if name == key)
    first = piece.box.lo
    last = tuple(lo + size - 1 for lo, size in zip(first, piece.box.size, strict=True))
    here_box = _box(piece.at(first), piece.at(last), laid.shape)
    there_box = _box(there.at(first), there.at(last), whole.shape)
    if here_box.volume != piece.box.volume or there_box.volume != piece.box.volume:
        raise target_error(
            "uneven-target",
            f"a shard of `{whole.name}` holds no box of it",
            notes=["nanotron describes a shard by slices"],
            helps=["choose another `tp`"],
        )
    return here_box, there_box


def _box(first: int, last: int, shape: Sequence[int]) -> Box:
    lo, hi = _index(first, shape), _index(last, shape)
    return Box(lo, tuple(b - a + 1 for a, b in zip(lo, hi, strict=True)))


def _index(address: int, shape: Sequence[int]) -> tuple[int, ...]:
    out = []
    for stride in row_major(tuple(shape)):
        out.append(address // stride)
        address %= stride
    return tuple(out)
