"""Lays whole tensors out on another mesh, by the same rules that they were read through."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from reshard.algebra.piece import Piece
from reshard.algebra.split import round_up
from reshard.algebra.term import Extent, segment_piece, segments, stored_shape
from reshard.errors import ReshardError, target_error
from reshard.language.layout import Rule, Split
from reshard.plan.arrangement import Arrangement, Bound
from reshard.plan.axes import AxisCut, block_count, blocks_of
from reshard.plan.catalog import Coord
from reshard.plan.environment import environment
from reshard.plan.matching import STAGE_AXES, on_stage
from reshard.plan.numbers import number_segments
from reshard.plan.slots import slot_split
from reshard.plan.solve import padded_size


@dataclass(frozen=True, slots=True)
class LaidTensor:
    """One local tensor of the target.

    Args:  whole: name of the whole tensor.  name: as stored there, with local indices.
           coord: where.  shape: local, padding included.
           segments: (atom key, piece of the row-major local tensor).
           numbers: the segments of an array of one element, a number kept per parameter.
    """

    whole: str
    name: str
    coord: Coord
    shape: tuple[int, ...]
    segments: tuple[tuple[str, Piece], ...]
    numbers: tuple[tuple[str, Piece], ...]


def lay_out(
    arrangement: Arrangement,
    mesh: Mapping[str, int],
    *,
    copied: Collection[str] = ("pp", "tp"),
    settings: Mapping[str, float | None] | None = None,
) -> tuple[LaidTensor, ...]:
    """Every local tensor of every coordinate, in the order of the source's tensors.

    Args:  mesh: axis -> size of the target; axes that are left out have size 1.
           copied: axes along which a tensor that is not cut is held by every rank; along others it
                   has no coordinate. On `pp` a tensor stays on the stages that its rule says, or,
                   in a layout without a model, on those that hold it in the source.
           settings: sizes that the user states.
    Raises: ReshardError[target-stages | uneven-target], and what evaluating a padding raises.
    """
    whole_mesh = {
        axis: mesh.get(axis, 1) for axis in (*arrangement.layout.mesh, *arrangement.mesh, *mesh)
    }
    job = _Layer(arrangement, whole_mesh, copied, settings or {})
    return tuple(laid for bound in arrangement.bound.values() for laid in job.tensors(bound))


class _Layer:
    """One layout on one mesh.

    Args:  mesh: every axis that the layout, the source, or the target has.
    """

    def __init__(
        self,
        arrangement: Arrangement,
        mesh: Mapping[str, int],
        copied: Collection[str],
        settings: Mapping[str, float | None],
    ) -> None:
        self._arrangement = arrangement
        self._layout = arrangement.layout
        self._mesh = mesh
        self._copied = copied
        env = environment(arrangement.layout, arrangement.catalog, mesh, settings)
        stated = {name: value for name, value in settings.items() if value is not None}
        self._env = {**env, **arrangement.values, **mesh, **stated}

    def tensors(self, bound: Bound) -> Iterator[LaidTensor]:
        """Every local tensor of one whole tensor."""
        rule = self._layout.rules[bound.rule]
        cuts = self._cuts(bound, rule)
        local = [slot.axis for slot in rule.pattern.slots if slot.local]
        numbers = number_segments(bound.atoms.values(), bound.positions, self._arrangement.atoms)
        for coord in self._coords(bound, rule, cuts):
            extents = {axis: cut.extent(coord, self._mesh) for axis, cut in cuts.items()}
            if not all(_has(extents[a], index) for a, index in bound.indices.items() if a in cuts):
                continue
            indices = {**bound.indices, **{a: bound.indices[a] - extents[a].lo for a in local}}
            extents.update({axis: Extent(i, 1, 1) for axis, i in bound.positions.items()})
            yield LaidTensor(
                bound.name,
                rule.pattern.fill(indices, bound.captures),
                tuple(coord.items()),
                stored_shape(bound.dims, extents),
                tuple(self._pieces(bound, extents)),
                numbers,
            )

    def _pieces(self, bound: Bound, extents: Mapping[str, Extent]) -> Iterator[tuple[str, Piece]]:
        for segment in segments(bound.dims, extents):
            key = bound.atoms[segment.labels]
            yield key, segment_piece(segment, self._arrangement.atoms[key].axes, extents)

    def _coords(
        self, bound: Bound, rule: Rule, cuts: Mapping[str, AxisCut]
    ) -> Iterator[dict[str, int]]:
        """Every coordinate that holds some of a tensor, or a copy of it."""
        used = {axis for cut in cuts.values() for axis in cut.over}
        stages = None
        if rule.stage is not None:
            used.update(STAGE_AXES)
        elif self._layout.model is None and "pp" not in used:
            stages = self._stages(bound)
            used.add("pp")
        axes = [
            axis
            for axis, size in self._mesh.items()
            if size > 1 and (axis in used or axis in self._copied)
        ]
        for position in product(*(range(self._mesh[axis]) for axis in axes)):
            coord = dict(zip(axes, position, strict=True))
            if stages is not None and coord.get("pp", 0) not in stages:
                continue
            if on_stage(rule, coord, self._mesh):
                yield coord

    def _cuts(self, bound: Bound, rule: Rule) -> dict[str, AxisCut]:
        slots = {slot.axis: slot_split(self._layout, slot) for slot in rule.pattern.slots}
        places = self._layout.places
        return {
            axis: self._recut(
                bound.name,
                axis,
                cut,
                rule.splits.get(axis) or slots.get(axis) or places.get(axis) or Split(),
            )
            for axis, cut in bound.cuts.items()
        }

    def _recut(self, name: str, axis: str, cut: AxisCut, split: Split) -> AxisCut:
        stored = padded_size(axis, cut.size, split, self._env)
        if split.truncated_to is not None and split.pad_to is None:
            count = block_count(cut.over, self._mesh)
            if count == len(cut.blocks):
                return cut
            stored = round_up(cut.size, count)
        try:
            return AxisCut(cut.over, blocks_of(stored, split, self._mesh), cut.size)
        except ValueError as error:
            raise self._uneven(name, axis, cut, split, f"{error}") from None

    def _uneven(self, name: str, axis: str, cut: AxisCut, split: Split, why: str) -> ReshardError:
        over = ", ".join(cut.over)
        sizes = ", ".join(f"{mesh}={self._mesh.get(mesh, 1)}" for mesh in cut.over)
        help_text = f"choose a size of {over} that divides {cut.size}"
        if cut.size == 1:
            help_text = f"an axis of one cannot be cut: choose {over}=1"
        if split.rule == "sizes":
            help_text = f"state the sizes for {sizes} in a layout of your own, with `--layout`"
        return target_error(
            "uneven-target",
            f"axis `{axis}` of `{name}` cannot be cut over {sizes}",
            notes=[why, f"the source cuts it into {', '.join(map(str, cut.blocks))}"],
            helps=[help_text],
        )

    def _stages(self, bound: Bound) -> Collection[int]:
        """The pipeline stages of the target that hold a tensor whose layer no rule tells."""
        wanted = self._mesh.get("pp", 1)
        have = self._arrangement.mesh.get("pp", 1)
        if wanted == 1:
            return range(1)
        if wanted != have:
            raise target_error(
                "target-stages",
                f"the target has {wanted} pipeline stages, and the source has {have}",
                notes=[
                    "a layout without a model does not state which layer belongs to which stage"
                ],
                helps=[f"choose pp={have} or pp=1" if have > 1 else "choose pp=1"],
            )
        held = {index for coord in bound.coords for axis, index in coord if axis == "pp"}
        return held or range(wanted)


def _has(extent: Extent, index: int) -> bool:
    return extent.lo <= index < extent.lo + extent.size
