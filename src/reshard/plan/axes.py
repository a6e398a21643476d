"""How an axis lies along the mesh once every size is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.algebra.split import split_sizes
from reshard.algebra.term import Extent
from reshard.language.layout import Split


@dataclass(frozen=True, slots=True)
class AxisCut:
    """An axis, cut into consecutive blocks.

    Args:  over: mesh axes that number the blocks, the first one major; () for one block.
           blocks: stored elements of each block, padding included.
           size: logical elements; what the blocks hold beyond it is padding.
    """

    over: tuple[str, ...]
    blocks: tuple[int, ...]
    size: int

    @property
    def stored(self) -> int:
        """Stored elements of all blocks."""
        return sum(self.blocks)

    def block(self, coord: Mapping[str, int], mesh: Mapping[str, int]) -> int | None:
        """Which block a coordinate holds; None when it holds the whole axis.

        A coordinate that does not name a mesh axis holds all of what that axis would cut.
        """
        if not any(axis in coord for axis in self.over):
            return None
        index = 0
        for axis in self.over:
            length = mesh.get(axis, 1)
            if axis not in coord and length > 1:
                raise ValueError(f"coordinate {dict(coord)} names no {axis} of {length}")
            index = index * length + coord.get(axis, 0)
        return index

    def extent(
        self, coord: Mapping[str, int], mesh: Mapping[str, int], *, padded: bool = True
    ) -> Extent:
        """What a coordinate holds of the axis.

        Args:  padded: whether a coordinate that holds the whole axis holds its padding too.
        """
        block = self.block(coord, mesh)
        if block is None:
            return Extent(0, self.size, self.stored if padded else self.size)
        lo = sum(self.blocks[:block])
        stored = self.blocks[block]
        return Extent(min(lo, self.size), max(0, min(lo + stored, self.size) - lo), stored)


def blocks_of(total: int, split: Split, mesh: Mapping[str, int]) -> tuple[int, ...]:
    """The stored size of every block of an axis of `total` stored elements.

    Where the mesh has one rank, stated sizes for several need only have the same sum.

    Raises: ValueError when the split cannot cut this total.
    """
    count = block_count(split.over, mesh)
    if count == 1 and sum(split.sizes) in (0, total):
        return (total,)
    return split_sizes(total, count, split.rule, split.sizes)


def block_count(over: tuple[str, ...], mesh: Mapping[str, int]) -> int:
    """How many blocks an axis has that is cut over these mesh axes."""
    count = 1
    for axis in over:
        count *= mesh.get(axis, 1)
    return count
