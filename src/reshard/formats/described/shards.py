"""Tensors of which each file says itself which part of the whole it holds, and states beside them.

A state has the part that the weight of the same rank has, or a share of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.formats.described.faults import bad_shard, share_mismatch
from reshard.formats.described.sharing import Sharing
from reshard.formats.described.slices import SlicesError, read_slices
from reshard.formats.described.walk import Leaf, Walked
from reshard.formats.dtensor import RankTensor
from reshard.language.layout import Layout
from reshard.plan.matching import STAGE_AXES
from reshard.plan.slice import in_shares
from reshard.storage.tensor_ref import TensorRef


@dataclass(frozen=True, slots=True)
class _Shard:
    """One file of a weight.

    Args:  local, whole: shapes.  at: the rank that it is of, on the axes that cut the weight.
    """

    local: tuple[int, ...]
    whole: tuple[int, ...]
    pieces: tuple[Piece, ...]
    at: Mapping[str, int]


class Shards:
    """What the files of a layout say of the parts that they hold."""

    def __init__(
        self, layout: Layout, walked: Walked, mesh: Mapping[str, int], sharing: Sharing
    ) -> None:
        self._sharing, self._mesh = sharing, mesh
        self._said = {leaf.file.path: leaf.value for leaf in walked.of("slices")}
        self._shards: dict[str, list[_Shard]] = {}
        self.are_used = any(x.role == "slices" for rule in layout.files for x in rule.entries)

    def add(self, name: str, leaf: Leaf) -> None:
        """One more file of a weight.

        Raises: ReshardError[bad-shard].
        """
        ref = leaf.value
        if not isinstance(ref, TensorRef):
            raise bad_shard(leaf, "it is no tensor")
        holes = [hole.name for hole in leaf.file.name.pattern.holes if not hole.is_size]
        axes = [axis for axis in holes if axis in self._mesh and axis not in STAGE_AXES]
        whole = ref.shape
        pieces: tuple[Piece, ...] = (Piece(Box.whole(whole), 0, row_major(whole)),)
        said = self._said.get(leaf.file.path)
        if axes:
            try:
                whole, pieces = read_slices(said, ref.shape)
            except SlicesError as error:
                raise bad_shard(leaf, str(error)) from None
        elif said:
            raise bad_shard(leaf, "it says that it is a part, and its file's name that it is whole")
        at = {axis: int(leaf.bindings[axis]) for axis in axes}
        self._shards.setdefault(name, []).append(_Shard(ref.shape, whole, pieces, at))

    def parts(self, name: str, state: str, leaf: Leaf) -> list[RankTensor]:
        """What a file holds of a state of a parameter.

        Raises: ReshardError[bad-shard | share-mismatch].
        """
        ref, bindings = leaf.value, leaf.bindings
        if not isinstance(ref, TensorRef):
            raise bad_shard(leaf, f"`{state}` of `{name}` is no tensor")
        known = self._shards.get(name, [])
        shard = next((x for x in known if all(bindings.get(a) == i for a, i in x.at.items())), None)
        if shard is None:
            of = "`, `".join(f"{axis}={bindings[axis]}" for axis in self._mesh if axis in bindings)
            raise bad_shard(leaf, f"no weight `{name}` is stored for `{of}`")
        if state == "param":
            return [_part(ref, shard.whole, piece, ()) for piece in shard.pieces]
        ranks = {axis: int(bindings[axis]) for axis in self._mesh if axis in bindings}
        if not ref.shape and shard.whole:
            return [RankTensor(ref, (), Box.whole(()), (*ranks.items(),), ())]
        rule = self._sharing.rule(state, bindings)
        pieces = list(shard.pieces)
        if rule is not None:
            rank, cuts = ranks.pop(rule.over), self._sharing.cuts(rule, shard.local)
            length = cuts.lengths[rank]
            held = in_shares([("", piece) for piece in pieces], cuts.by_rank[rank])
            pieces = [piece for _, piece in held]
            if ref.numel != length:
                raise share_mismatch(rule, state, [(name, shard.local)], leaf, ref.numel, length)
        elif ref.numel != prod(shard.local):
            raise bad_shard(
                leaf, f"its weight has {prod(shard.local)} elements, and it {ref.numel}"
            )
        if not ref.is_contiguous:
            raise bad_shard(leaf, "its elements do not lie one behind the other")
        copy = tuple((axis, index) for axis, index in ranks.items() if axis not in shard.at)
        return [_part(ref, shard.whole, piece, copy) for piece in pieces]


def _part(
    ref: TensorRef, whole: tuple[int, ...], piece: Piece, copy: tuple[object, ...]
) -> RankTensor:
    """A box of a whole tensor as the elements of a file's tensor that hold it."""
    at = ref.byte_offset + piece.offset * ref.dtype.itemsize
    held = replace(ref, byte_offset=at, shape=piece.box.size, strides=piece.strides)
    return RankTensor(held, whole, piece.box, copy, ())
