"""Lays whole tensors out on another mesh, by the same rules that they were read through."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from reshard.algebra.piece import Piece
from reshard.algebra.split import round_up
from reshard.algebra.term import Extent, stored_shape
from reshard.errors import ReshardError, target_error
from reshard.language.layout import Rule, Split
from reshard.plan.arrangement import SCALAR, Arrangement, Bound
from reshard.plan.axes import AxisCut, block_count, blocks_of
from reshard.plan.catalog import Coord
from reshard.plan.collector import uncollected
from reshard.plan.environment import environment
from reshard.plan.form import PieceForm, piece_forms
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


@uncollected
def lay_out(
    arrangement: Arrangement,
    mesh: Mapping[str, int],
    *,
    copied: Collection[str] = ("pp", "tp"),
    settings: Mapping[str, float | None] | None = None,
    rank: Mapping[str, int] | None = None,
) -> tuple[LaidTensor, ...]:
    """Every local tensor of every coordinate, in the order of the source's tensors.

    Args:  mesh: axis -> size of the target; axes that are left out have size 1.
           copied: axes along which a tensor that is not cut is held by every rank; along others it
                   has no coordinate. On `pp` a tensor stays on the stages that its rule says, or,
                   in a layout without a model, on those that hold it in the source.
           settings: sizes that the user states.
           rank: only what this position has; it is 0 on axes that are left out.
    Raises: ReshardError[target-stages | uneven-target], and what evaluating a padding raises.
    """
    whole_mesh = {
        axis: mesh.get(axis, 1) for axis in (*arrangement.layout.mesh, *arrangement.mesh, *mesh)
    }
    job = _Layer(arrangement, whole_mesh, copied, settings or {}, rank)
    return tuple(laid for bound in arrangement.bound.values() for laid in job.tensors(bound))


_Table = dict[tuple[int, ...], list[tuple[int, LaidTensor]]]
"""Tensors with their numbers, by their places on some axes."""


class ByPlace:
    """Local tensors by where they are, so that those of one rank are not looked for among all."""

    def __init__(self, tensors: Iterable[LaidTensor]) -> None:
        self._tables: dict[
            tuple[str, ...], dict[tuple[int, ...], list[tuple[int, LaidTensor]]]
        ] = {}
        for number, tensor in enumerate(tensors):
            axes, place = zip(*tensor.coord, strict=True) if tensor.coord else ((), ())
            table = self._tables.setdefault(axes, {})
            table.setdefault(place, []).append((number, tensor))

    def at(self, coord: Mapping[str, int]) -> list[LaidTensor]:
        """The tensors of a rank, in the order of all; it is 0 on axes that are not said."""
        numbered: list[tuple[int, LaidTensor]] = []
        for axes, table in self._tables.items():
            numbered += table.get(tuple(coord.get(axis, 0) for axis in axes), ())
        return [tensor for _, tensor in sorted(numbered, key=lambda item: item[0])]


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
        rank: Mapping[str, int] | None = None,
    ) -> None:
        self._arrangement = arrangement
        self._rank = rank
        self._forms: dict[object, _Form] = {}
        self._layout = arrangement.layout
        self._mesh = mesh
        self._copied = copied
        env = environment(arrangement.layout, arrangement.catalog, mesh, settings)
        stated = {name: value for name, value in settings.items() if value is not None}
        self._env = {**env, **arrangement.values, **mesh, **stated}

    def tensors(self, bound: Bound) -> Iterator[LaidTensor]:
        """Every local tensor of one whole tensor."""
        rule = self._layout.rules[bound.rule]
        form = self._form(bound, rule)
        positions = bound.positions
        numbers = form.numbers
        if numbers is None or self._layout.model is None:
            atoms = self._arrangement.atoms
            numbers = number_segments(bound.atoms.values(), positions, atoms)
        for place in form.holding(bound.indices):
            indices = bound.indices
            if form.local:
                indices = {**indices, **{a: indices[a] - place.first[a] for a in form.local}}
            yield LaidTensor(
                bound.name,
                rule.pattern.fill(indices, bound.captures),
                place.coord,
                place.shape,
                tuple((bound.atoms[labels], piece.at(positions)) for labels, piece in place.pieces),
                numbers,
            )

    def _form(self, bound: Bound, rule: Rule) -> _Form:
        """What all whole tensors have in common that are cut as this one is."""
        axes = self._arrangement.atoms
        kind = bound.rule, id(bound.cuts), len(bound.dims), self._stages_of(bound)
        form = self._forms.get(kind)
        if form is None:
            cuts = self._cuts(bound, rule)
            atom_axes = {labels: axes[key].axes for labels, key in bound.atoms.items()}
            places = [
                self._place(dict(coord), bound, cuts, atom_axes)
                for coord in self._coords(bound, rule, cuts)
            ]
            has_numbers = any(f"{key}{SCALAR}" in axes for key in bound.atoms.values())
            form = self._forms[kind] = _Form(
                [axis for axis in bound.indices if axis in cuts],
                tuple(slot.axis for slot in rule.pattern.slots if slot.local),
                places,
                None if has_numbers else (),
            )
        return form

    def _place(
        self,
        coord: Mapping[str, int],
        bound: Bound,
        cuts: Mapping[str, AxisCut],
        atom_axes: Mapping[tuple[str, ...], tuple[str, ...]],
    ) -> _Place:
        extents = {axis: cut.extent(coord, self._mesh) for axis, cut in cuts.items()}
        named = {axis: extents[axis] for axis in bound.indices if axis in cuts}
        shaped = {**extents, **{axis: Extent(0, 1, 1) for axis in bound.indices}}
        return _Place(
            tuple(coord.items()),
            stored_shape(bound.dims, shaped),
            piece_forms(bound.dims, shaped, atom_axes, bound.indices),
            {axis: extent.lo for axis, extent in extents.items()},
            tuple((extent.lo, extent.lo + extent.size) for extent in named.values()),
        )

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
        for position in product(*map(self._positions, axes)):
            coord = dict(zip(axes, position, strict=True))
            if stages is not None and coord.get("pp", 0) not in stages:
                continue
            if on_stage(rule, coord, self._mesh):
                yield coord

    def _positions(self, axis: str) -> range:
        """The positions on a mesh axis that are wanted."""
        if self._rank is None:
            return range(self._mesh[axis])
        position = self._rank.get(axis, 0)
        return range(position, min(position + 1, self._mesh[axis]))

    def _stages_of(self, bound: Bound) -> object:
        """What of the coordinates of a source the stages of a target follow from."""
        if self._layout.model is not None or self._mesh.get("pp", 1) == 1:
            return None
        return frozenset(index for coord in bound.coords for axis, index in coord if axis == "pp")

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


@dataclass(frozen=True, slots=True)
class _Place:
    """What one coordinate has of the whole tensors of a form.

    Args:  shape: local.  pieces: by labels.  first: by axis, the first index that it has.
           ranges: of each axis that names have an index of, the indices that it has.
    """

    coord: Coord
    shape: tuple[int, ...]
    pieces: tuple[tuple[tuple[str, ...], PieceForm], ...]
    first: Mapping[str, int]
    ranges: tuple[tuple[int, int], ...]


class _Form:
    """Whole tensors of one rule that are cut alike.

    Args:  named: axes that names have an index of, of those that are cut.
           local: those that names count on each rank.  places: in the order of the mesh.
           numbers: of each of them, as in `LaidTensor`, where that is the same; None if not.
    """

    def __init__(
        self,
        named: Sequence[str],
        local: tuple[str, ...],
        places: Sequence[_Place],
        numbers: tuple[tuple[str, Piece], ...] | None,
    ) -> None:
        self.local = local
        self.numbers = numbers
        self._named = named
        self._places: dict[tuple[tuple[int, int], ...], list[_Place]] = {}
        for place in places:
            self._places.setdefault(place.ranges, []).append(place)
        self._ranges = [list(dict.fromkeys(of_axis)) for of_axis in zip(*self._places, strict=True)]
        self._known: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def holding(self, indices: Mapping[str, int]) -> Iterator[_Place]:
        """The places that have a tensor with these indices in its name."""
        if self._places:
            choices = [self._having(at, indices[axis]) for at, axis in enumerate(self._named)]
            for ranges in product(*choices):
                yield from self._places.get(ranges, ())

    def _having(self, at: int, index: int) -> list[tuple[int, int]]:
        known = self._known.get((at, index))
        if known is None:
            known = [item for item in self._ranges[at] if item[0] <= index < item[1]]
            self._known[at, index] = known
        return known
