"""Indices in names: from the local number that a rank writes to the global one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reshard.algebra.split import split_sizes
from reshard.errors import layout_error
from reshard.language.layout import Layout, Rule, Split
from reshard.language.pattern import IndexSlot
from reshard.plan.axes import AxisCut, block_count
from reshard.plan.matching import Matched


@dataclass(frozen=True, slots=True)
class SlotFamily:
    """Stored names that differ in their local indices alone: they count the same axis.

    Args:  rule: index in the layout.  captures, fixed: what else the names hold.
    """

    pattern: str
    captures: tuple[str, ...]
    fixed: tuple[tuple[str, int], ...]

    @staticmethod
    def of(rule: Rule, item: Matched) -> SlotFamily:
        """The family of a matched tensor."""
        local = {slot.axis for slot in rule.pattern.slots if slot.local}
        fixed = tuple((a, i) for a, i in item.match.indices.items() if a not in local)
        return SlotFamily(rule.pattern.text, item.match.captures, fixed)

    def global_indices(
        self,
        item: Matched,
        cuts: Mapping[SlotFamily, Mapping[str, AxisCut]],
        mesh: Mapping[str, int],
    ) -> dict[str, int]:
        """The global index of every slot of a matched name."""
        coord = dict(item.tensor.coord)
        out = {}
        for axis, index in item.match.indices.items():
            cut = cuts.get(self, {}).get(axis)
            out[axis] = index if cut is None else cut.extent(coord, mesh).lo + index
        return out


def slot_split(layout: Layout, slot: IndexSlot) -> Split:
    """How the axis of a local slot is cut: by the slot itself, or by the layout's `place`."""
    if slot.over:
        return Split(slot.over, slot.rule, slot.sizes)
    return layout.places.get(slot.axis, Split())


def slot_cuts(
    layout: Layout, matched: Sequence[Matched], mesh: Mapping[str, int]
) -> dict[SlotFamily, dict[str, AxisCut]]:
    """For every family, the cut of the axes that its names count locally.

    A block is as long as the highest local number on its ranks says.

    Raises: ReshardError[uneven-split | missing-block].
    """
    counts: dict[SlotFamily, dict[str, dict[int, int]]] = {}
    splits: dict[SlotFamily, dict[str, Split]] = {}
    for item in matched:
        rule = layout.rules[item.rule]
        local = [slot for slot in rule.pattern.slots if slot.local]
        if not local:
            continue
        family = SlotFamily.of(rule, item)
        coord = dict(item.tensor.coord)
        for slot in local:
            split = slot_split(layout, slot)
            splits.setdefault(family, {})[slot.axis] = split
            block = AxisCut(split.over, (), 0).block(coord, mesh) or 0
            sizes = counts.setdefault(family, {}).setdefault(slot.axis, {})
            sizes[block] = max(sizes.get(block, 0), item.match.indices[slot.axis] + 1)
    return {
        family: {
            axis: _cut(family, axis, splits[family][axis], sizes, mesh)
            for axis, sizes in axes.items()
        }
        for family, axes in counts.items()
    }


def _cut(
    family: SlotFamily, axis: str, split: Split, sizes: Mapping[int, int], mesh: Mapping[str, int]
) -> AxisCut:
    count = block_count(split.over, mesh)
    listed = ", ".join(str(sizes.get(block, 0)) for block in range(count))
    if split.rule != "sizes":
        missing = [block for block in range(count) if block not in sizes]
        if missing and split.rule == "even":
            raise layout_error(
                "missing-block",
                f"block {missing[0]} of `{axis}` in `{family.pattern}` is not stored",
                notes=[f"{len(sizes)} of {count} blocks over {', '.join(split.over)} were found"],
            )
    found = tuple(sizes.get(block, 0) for block in range(count))
    try:
        wanted = split_sizes(sum(found), count, split.rule, split.sizes)
    except ValueError:
        wanted = ()
    if wanted != found:
        raise layout_error(
            "uneven-split",
            f"`{axis}` in `{family.pattern}` is not cut as the layout says",
            notes=[f"over {', '.join(split.over)} the ranks number {listed}"],
            helps=[f"state the counts: `as ({listed})`"],
        )
    return AxisCut(split.over, found, sum(found))
