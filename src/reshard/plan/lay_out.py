"""Lays whole tensors out on another mesh, by the same rules that they were read through."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from reshard.algebra.piece import Piece
from reshard.algebra.split import round_up, split_sizes
from reshard.algebra.term import Extent, segment_piece, segments, stored_shape
from reshard.errors import target_error
from reshard.language.layout import Split
from reshard.plan.arrangement import Arrangement, Bound
from reshard.plan.axes import AxisCut, block_count
from reshard.plan.catalog import Coord
from reshard.plan.slots import slot_split


@dataclass(frozen=True, slots=True)
class LaidTensor:
    """One local tensor of the target.

    Args:  whole: name of the whole tensor.  name: as stored there, with local indices.
           coord: where.  shape: local, padding included.
           segments: (atom key, piece of the row-major local tensor).
           scalar: key of the atom that holds its per-parameter numbers.
    """

    whole: str
    name: str
    coord: Coord
    shape: tuple[int, ...]
    segments: tuple[tuple[str, Piece], ...]
    scalar: str


def lay_out(
    arrangement: Arrangement,
    mesh: Mapping[str, int],
    *,
    copied: Collection[str] = ("pp", "tp"),
) -> tuple[LaidTensor, ...]:
    """Every local tensor of every coordinate, in the order of the source's tensors.

    Args:  mesh: axis -> size of the target; axes that are left out have size 1.
           copied: axes along which a tensor that is not cut is held by every rank; along others it
                   has no coordinate. On `pp` a tensor stays on the stages that hold it in the
                   source.
    Raises: ReshardError[target-stages | uneven-target].
    """
    return tuple(
        laid
        for bound in arrangement.bound.values()
        for laid in _tensor(arrangement, bound, mesh, copied)
    )


def _tensor(
    arrangement: Arrangement, bound: Bound, mesh: Mapping[str, int], copied: Collection[str]
) -> Iterator[LaidTensor]:
    rule = arrangement.layout.rules[bound.rule]
    slots = {slot.axis: slot_split(arrangement.layout, slot) for slot in rule.pattern.slots}
    splits = {
        axis: rule.splits.get(axis)
        or slots.get(axis)
        or arrangement.layout.places.get(axis)
        or Split()
        for axis in bound.cuts
    }
    cuts = {
        axis: _recut(bound.name, axis, cut, splits[axis], mesh) for axis, cut in bound.cuts.items()
    }
    used = {axis for cut in cuts.values() for axis in cut.over}
    axes = [
        axis
        for axis in arrangement.mesh
        if mesh.get(axis, 1) > 1 and (axis in used or axis in copied)
    ]
    axes += [axis for axis in mesh if mesh[axis] > 1 and axis not in axes and axis in used]
    stages = _stages(arrangement, bound, mesh)
    local_slots = {slot.axis for slot in rule.pattern.slots if slot.local}
    for position in product(*(range(mesh[axis]) for axis in axes)):
        coord = dict(zip(axes, position, strict=True))
        if "pp" in coord and "pp" not in used and coord["pp"] not in stages:
            continue
        extents = {axis: cut.extent(coord, mesh) for axis, cut in cuts.items()}
        indices = dict(bound.indices)
        held = True
        for axis in local_slots & cuts.keys():
            extent = extents[axis]
            held = held and extent.lo <= indices[axis] < extent.lo + extent.size
            indices[axis] -= extent.lo
        if not held:
            continue
        extents.update({axis: Extent(index, 1, 1) for axis, index in bound.indices.items()})
        pieces = []
        for segment in segments(bound.dims, extents):
            key = bound.atoms[segment.labels]
            piece = segment_piece(segment, arrangement.atoms[key].axes, extents)
            pieces.append((key, piece))
        yield LaidTensor(
            bound.name,
            rule.pattern.fill(indices, bound.captures),
            tuple(coord.items()),
            stored_shape(bound.dims, extents),
            tuple(pieces),
            f"{pieces[0][0]}()",
        )


def _recut(name: str, axis: str, cut: AxisCut, split: Split, mesh: Mapping[str, int]) -> AxisCut:
    count = block_count(cut.over, mesh)
    if count == len(cut.blocks):
        return cut
    padded = split.truncated_to is not None or split.pad_to is not None
    stored = round_up(cut.size, count) if padded else cut.size
    rule = split.rule
    if rule == "sizes":
        rule = "even"  # the widths were stated for another number of ranks
    try:
        return AxisCut(cut.over, split_sizes(stored, count, rule), cut.size)
    except ValueError as error:
        over = ", ".join(cut.over)
        raise target_error(
            "uneven-target",
            f"axis `{axis}` of `{name}` cannot be cut over {over} of the target",
            notes=[f"{error}", f"the source cuts it into {', '.join(map(str, cut.blocks))}"],
            helps=[f"choose a size of {over} that divides {cut.size}"],
        ) from None


def _stages(arrangement: Arrangement, bound: Bound, mesh: Mapping[str, int]) -> set[int]:
    """The pipeline stages of the target that hold a tensor."""
    wanted = mesh.get("pp", 1)
    have = arrangement.mesh.get("pp", 1)
    if wanted == 1:
        return {0}
    if wanted != have:
        raise target_error(
            "target-stages",
            f"the target has {wanted} pipeline stages, the source has {have}",
            notes=["a layout without a model does not tell which layer goes to which stage"],
            helps=[f"choose pp={have} or pp=1"],
        )
    return {index for coord in bound.coords for axis, index in coord if axis == "pp"}
