"""Whole tensors cut by a layout without a model: the pieces of each rank, as pieces of the atoms.

Nothing is moved: a rank's tensor is some boxes of the whole one, and what those hold is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.language.layout import Layout
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.bind import bind
from reshard.plan.catalog import Coord, LocalTensor
from reshard.plan.lay_out import lay_out
from reshard.plan.slice import boxed
from reshard.run.states import PARAM

Segments = tuple[tuple[str, Piece], ...]


@dataclass(frozen=True, slots=True)
class CutTensor:
    """What one coordinate holds of a tensor, of any state that has its shape.

    Args:  name: as stored there.  coord: on the axes that cut it.  segments: by state.
    """

    name: str
    coord: Coord
    shape: tuple[int, ...]
    segments: Mapping[str, Segments]


def cut_tensors(
    arrangement: Arrangement,
    layout: Layout,
    mesh: Mapping[str, int],
    settings: Mapping[str, float | None] | None = None,
) -> dict[str, list[CutTensor]]:
    """Every tensor of every coordinate, by the name of the whole tensor.

    Args:  arrangement: in the names of the layout, and read through it, if that is of a model.
           mesh: of the target.
    Raises: what `bind` and `lay_out` raise.
    """
    out: dict[str, list[CutTensor]] = {}
    wholes: dict[str, list[Whole]] = {}
    for whole in arrangement.wholes:
        if whole.rule >= 0:
            wholes.setdefault(whole.name, []).append(whole)
    if layout.model is not None:
        for laid in lay_out(arrangement, mesh, copied=(), settings=settings):
            segments = {whole.state: laid.segments for whole in wholes.get(laid.whole, ())}
            item = CutTensor(laid.name, laid.coord, laid.shape, segments)
            out.setdefault(laid.whole, []).append(item)
        return out
    cut = _bound_whole(arrangement, layout, [items[0] for items in wholes.values()])
    stored = {whole.name: dict(whole.segments) for whole in cut.wholes}
    for laid in lay_out(cut, mesh, copied=(), settings=settings):
        found: dict[str, Segments] = {}
        for whole in wholes[laid.whole]:
            found[whole.state] = tuple(
                item
                for key, piece in laid.segments
                for item in _composed(whole, stored[laid.whole][key], piece)
            )
        out.setdefault(laid.whole, []).append(CutTensor(laid.name, laid.coord, laid.shape, found))
    return out


def _bound_whole(arrangement: Arrangement, layout: Layout, wholes: list[Whole]) -> Arrangement:
    """The whole tensors read through the layout, on one rank; every rule may match nothing."""
    one = replace(
        layout,
        mesh=dict.fromkeys(layout.mesh),
        rules=tuple(replace(rule, optional=True, averaged_over=()) for rule in layout.rules),
    )
    tensors = tuple(
        LocalTensor(whole.name, PARAM, (), whole.shape, whole.dtype, ()) for whole in wholes
    )
    catalog = replace(arrangement.catalog, mesh={}, tensors=tensors, aliases={})
    return bind(one, catalog)


def _composed(whole: Whole, stored: Piece, held: Piece) -> Segments:
    """The atoms of what a rank holds of one part of a whole tensor.

    Args:  stored: where the part's elements lie in the whole tensor.
           held: which of them the rank holds, and where.
    """
    if not held.box.volume:
        return ()
    steps = row_major(whole.shape)
    axes: dict[int, list[tuple[int, int, int]]] = {dim: [] for dim in range(len(steps))}
    for size, outer, inner in zip(held.box.size, stored.strides, held.strides, strict=True):
        if size > 1:
            dim = next(
                d
                for d, (step, length) in enumerate(zip(steps, whole.shape, strict=True))
                if outer >= step and outer % step == 0 and outer // step * (size - 1) < length
            )
            axes[dim].append((size, outer // steps[dim], inner))
    start = stored.at(held.box.lo)
    choices = [_ranges(found) for found in axes.values()]
    out: list[tuple[str, Piece]] = []
    for chosen in product(*choices):
        lo: list[int] = []
        lengths: list[int] = []
        strides: list[int] = []
        offset = held.offset
        for dim, (shift, at, count, inner) in enumerate(chosen):
            lo.append(start // steps[dim] % whole.shape[dim] + shift)
            lengths.append(count)
            strides.append(inner)
            offset += at
        out += boxed(whole, Box(tuple(lo), tuple(lengths)), offset, tuple(strides))
    return tuple(out)


def _ranges(axes: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
    """The axes of one dimension as ranges of it.

    Args:  axes: size, and what a step is in the dimension and in the rank's tensor.
    Returns: (where it begins in the dimension, and in the rank's tensor; its length, and what a
             step is in the rank's tensor) of each range.
    """
    axes = sorted(axes, key=lambda axis: -axis[1])
    joined: list[tuple[int, int, int]] = []
    for size, outer, inner in axes:
        if joined and joined[-1][1:] == (outer * size, inner * size):
            joined[-1] = (joined[-1][0] * size, outer, inner)
        else:
            joined.append((size, outer, inner))
    size, step = 1, 0
    if joined and joined[-1][1] == 1:
        size, _, step = joined.pop()
    return [
        (
            sum(i * outer for i, (_, outer, _) in zip(index, joined, strict=True)),
            sum(i * inner for i, (_, _, inner) in zip(index, joined, strict=True)),
            size,
            step,
        )
        for index in product(*(range(count) for count, _, _ in joined))
    ]
