"""Tensors of which every rank's file says itself which part it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.formats.described.faults import bad_shard, missing_ranks, not_alike
from reshard.formats.described.shards import Shards
from reshard.formats.described.walk import Leaf
from reshard.formats.dtensor import DTensorError, RankTensor, rank_tensors
from reshard.plan.catalog import Fragment, LocalTensor

COPY = "copy"
"""The mesh axis along which equal parts lie."""


def join_boxes(
    name: str,
    state: str,
    found: Sequence[Leaf],
    mesh: Mapping[str, int],
    shards: Shards,
) -> list[LocalTensor]:
    """A tensor of what its ranks hold of it, once for each copy.

    Raises: ReshardError[bad-shard | missing-rank-file].
    """
    copies: dict[tuple[object, ...], list[Fragment]] = {}
    first: RankTensor | None = None
    for leaf in found:
        parts = shards.parts(name, state, leaf) if shards.are_used else parts_of(leaf, mesh)
        for part in parts:
            first = first or part
            if (part.shape, part.ref.dtype) != (first.shape, first.ref.dtype):
                raise not_alike(name, state, found[0], leaf)
            lost = [rank for rank in part.ranks if rank >= _ranks(leaf, mesh)]
            if lost:
                raise missing_ranks(leaf, lost, len(part.ranks))
            whole = part.box.size == part.shape
            if part.box.volume or whole:
                strides = None if part.ref.is_contiguous else part.ref.strides
                where = (leaf.file.path, part.ref.byte_offset, strides)
                box = None if whole else part.box
                fragment = Fragment(0, part.ref.numel, *where, None, box)
                copies.setdefault(part.copy, []).append(fragment)
    if first is None:
        return []
    out = []
    for copy, fragments in enumerate(list(copies.values()) or [[]]):
        held = tuple(item for item in fragments if item.numel)
        coord = ((COPY, copy),) if len(copies) > 1 else ()
        out.append(LocalTensor(name, state, coord, first.shape, first.ref.dtype, held))
    return out


def parts_of(leaf: Leaf, mesh: Mapping[str, int]) -> list[RankTensor]:
    """What a rank's file holds of a tensor.

    Raises: ReshardError[bad-shard].
    """
    rank = 0
    for axis in _axes(leaf, mesh):
        rank = rank * mesh[axis] + int(leaf.bindings.get(axis, 0))
    try:
        return rank_tensors(leaf.value, rank)
    except DTensorError as error:
        raise bad_shard(leaf, str(error)) from None


def _axes(leaf: Leaf, mesh: Mapping[str, int]) -> list[str]:
    holes = (hole.name for hole in leaf.file.name.pattern.holes)
    return list(dict.fromkeys(name for name in holes if name in mesh))


def _ranks(leaf: Leaf, mesh: Mapping[str, int]) -> int:
    out = 1
    for axis in _axes(leaf, mesh):
        out *= mesh[axis]
    return out
