"""Indices in names: from the local number that a rank writes to the global one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import Label, ReshardError, layout_error
from reshard.language.layout import Layout, Split
from reshard.language.pattern import IndexSlot
from reshard.plan.axes import AxisCut, block_count, blocks_of
from reshard.plan.matching import Matched
from reshard.plan.solve_faults import listed


def slot_split(layout: Layout, slot: IndexSlot) -> Split:
    """How the axis of a slot is cut: by the slot itself, or by the layout's `place`."""
    if slot.over:
        return Split(slot.over, slot.rule, slot.sizes)
    return layout.places.get(slot.axis, Split())


@dataclass(frozen=True, slots=True)
class _Family:
    """Local indices that count the same things: they follow the same text in a name.

    Args:  prefix: of the stored name, up to the index.
           blocks: for the local indices in it, the blocks that they are counted in.
           over: mesh axes.
    """

    prefix: str
    blocks: tuple[int | None, ...]
    over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Local:
    """One local index of one stored name.

    Args:  block: None where the coordinate holds all of the axis, so that the index counts through.
    """

    family: _Family
    slot: IndexSlot
    split: Split
    block: int | None
    index: int


class SlotCuts:
    """The cuts of the axes that names count locally, in a layout without a model.

    A block is as long as the highest number on its ranks says, whichever tensor has that number.
    """

    def __init__(
        self, layout: Layout, mesh: Mapping[str, int], cuts: Mapping[_Family, AxisCut]
    ) -> None:
        self._layout = layout
        self._mesh = mesh
        self._cuts = cuts

    @staticmethod
    def of(layout: Layout, matched: Sequence[Matched], mesh: Mapping[str, int]) -> SlotCuts:
        """The cuts that the stored names show.

        Raises: ReshardError[uneven-split | missing-block].
        """
        counts: dict[_Family, dict[int | None, int]] = {}
        seen: dict[_Family, list[tuple[_Local, Matched]]] = {}
        for item in matched:
            for local in _locals(layout, item, mesh):
                blocks = counts.setdefault(local.family, {})
                blocks[local.block] = max(blocks.get(local.block, 0), local.index + 1)
                first = seen.setdefault(local.family, [])
                if all(local.split != other.split for other, _ in first):
                    first.append((local, item))
        cuts: dict[_Family, AxisCut] = {}
        for family, blocks in counts.items():
            for local, item in seen[family]:
                cuts[family] = _cut(layout, item, local, blocks, mesh)
        return SlotCuts(layout, mesh, cuts)

    def cuts(self, item: Matched) -> dict[str, AxisCut]:
        """By axis, for the local indices of a matched name."""
        return {
            local.slot.axis: self._cuts[local.family]
            for local in _locals(self._layout, item, self._mesh)
        }

    def indices(self, item: Matched) -> dict[str, int]:
        """The global index of every slot of a matched name."""
        out = dict(item.match.indices)
        for local in _locals(self._layout, item, self._mesh):
            if local.block is not None:
                blocks = self._cuts[local.family].blocks
                out[local.slot.axis] = sum(blocks[: local.block]) + local.index
        return out


def _locals(layout: Layout, item: Matched, mesh: Mapping[str, int]) -> Iterator[_Local]:
    pattern = layout.rules[item.rule].pattern
    if not any(slot.local for slot in pattern.slots):
        return
    captures = iter(item.match.captures)
    coord = dict(item.tensor.coord)
    prefix = ""
    blocks: tuple[int | None, ...] = ()
    for piece in pattern.pieces:
        if isinstance(piece, str):
            prefix += piece
        elif isinstance(piece, IndexSlot):
            index = item.match.indices[piece.axis]
            if piece.local:
                split = slot_split(layout, piece)
                block = AxisCut(split.over, (), 0).block(coord, mesh)
                family = _Family(prefix, blocks, split.over)
                yield _Local(family, piece, split, block, index)
                blocks = (*blocks, block)
            prefix += str(index)
        else:
            prefix += next(captures)


def _cut(
    layout: Layout,
    item: Matched,
    local: _Local,
    counts: Mapping[int | None, int],
    mesh: Mapping[str, int],
) -> AxisCut:
    split = local.split
    if None in counts and len(counts) == 1:
        return AxisCut(split.over, (counts[None],), counts[None])
    count = block_count(split.over, mesh)
    missing = [block for block in range(count) if block not in counts]
    if missing and split.rule == "even":
        raise _missing(local, item, missing, count)
    found = tuple(counts.get(block, 0) for block in range(count))
    try:
        wanted = blocks_of(sum(found), split, mesh)
    except ValueError:
        wanted = ()
    if wanted != found:
        raise _uneven(layout, item, local, found)
    return AxisCut(split.over, found, sum(found))


def _missing(local: _Local, item: Matched, missing: Sequence[int], count: int) -> ReshardError:
    over = ", ".join(local.split.over)
    return layout_error(
        "missing-block",
        f"block {missing[0]} of index `{local.slot.axis}` of `{item.tensor.name}` over `{over}` "
        "is not stored",
        notes=[
            f"{count - len(missing)} of {count} blocks are stored, the first in {item.tensor.file}"
        ],
        helps=[
            "look for a missing rank file",
            f"if some ranks store none, state the counts: `{{local {local.slot.axis} over "
            f"{_bracket(local.split.over)} as (...)}}`",
        ],
        primary=Label(local.slot.span, "this index") if local.slot.span else None,
    )


def _uneven(layout: Layout, item: Matched, local: _Local, found: Sequence[int]) -> ReshardError:
    over = local.split.over
    rule = layout.rules[item.rule]
    return layout_error(
        "uneven-split",
        f'index `{local.slot.axis}` of `"{rule.pattern.text}"` is not cut as the layout says',
        notes=[
            f"the ranks of `{', '.join(over)}` count {listed(found)}, for one in {item.tensor.file}"
        ],
        helps=[
            f"state the counts: `{{local {local.slot.axis} over {_bracket(over)} "
            f"as ({listed(found)})}}`"
        ],
        primary=Label(local.slot.span, "this index") if local.slot.span else None,
    )


def _bracket(axes: Sequence[str]) -> str:
    return axes[0] if len(axes) == 1 else f"({', '.join(axes)})"
