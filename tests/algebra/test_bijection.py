"""The symbolic check, against writing every rank's tensor out."""

from __future__ import annotations

from collections import Counter
from itertools import product

from hypothesis import assume, event, given
from hypothesis import strategies as st

from brute_force import tensor_elements
from reshard.algebra.bijection import AxisFault, find_axis_fault
from reshard.algebra.term import Extent, Leaf, Part, Product, Sum, Term, segments

AXES = "abcd"
Case = tuple[
    tuple[Term, ...],
    tuple[str, ...],
    dict[tuple[str, ...], tuple[str, ...]],
    dict[str, tuple[str, ...]],
]


@st.composite
def rules(draw: st.DrawFn) -> Case:
    """A stored tensor of one or two atoms with axes anywhere, right or wrong."""
    leaves = st.sampled_from(AXES).map(Leaf)
    product_of = st.lists(leaves, max_size=2).map(lambda items: Product(tuple(items)))
    dims: list[Term] = draw(st.lists(product_of, max_size=2))
    if draw(st.booleans()):
        first, second = draw(product_of), draw(product_of)
        dims.append(Sum((Part("x", first), Part("y", second))))
    named = tuple(draw(st.lists(st.sampled_from(AXES), max_size=1)))
    unit = {axis: Extent(0, 1, 1) for axis in AXES}
    atom_axes = {}
    for segment in segments(tuple(dims), unit):
        used = sorted({*named, *(axis for axis, _ in segment.strides)})
        if draw(st.integers(0, 3)) == 0:  # mostly the axes that are there, so that many are right
            used = sorted(draw(st.sets(st.sampled_from(AXES))))
        atom_axes[segment.labels] = tuple(used)
    over = {
        axis: (draw(st.sampled_from(["pp", "tp"])),)
        for axis in AXES
        if draw(st.integers(0, 2)) == 0
    }
    return tuple(dims), named, atom_axes, over


def is_bijection(case: Case) -> bool:
    """Whether the elements of all ranks and all names are those of the atoms, each once."""
    dims, named, atom_axes, over = case
    if stands_twice(dims, named):
        return False  # elements off the diagonal are none of an atom's
    found: Counter[tuple[tuple[str, ...], tuple[tuple[str, int], ...]]] = Counter()
    cutting = sorted({mesh for cut in over.values() for mesh in cut})
    for coord in product(range(2), repeat=len(cutting)):
        where = dict(zip(cutting, coord, strict=True))
        extents = {axis: Extent.whole(2) for axis in AXES}
        extents.update({axis: Extent(where[mesh], 1, 1) for axis, (mesh,) in over.items()})
        counted = [range(extents[a].lo, extents[a].lo + extents[a].size) for a in named]
        for index in product(*counted):
            slots = dict(zip(named, index, strict=True))
            for element in tensor_elements(dims, extents):
                assert element is not None
                found[element[0], tuple(sorted({**element[1], **slots}.items()))] += 1
    wanted = {
        (labels, tuple(zip(axes, index, strict=True)))
        for labels, axes in atom_axes.items()
        for index in product(range(2), repeat=len(axes))
    }
    return found.keys() == wanted and set(found.values()) == {1}


def stands_twice(dims: tuple[Term, ...], named: tuple[str, ...]) -> bool:
    """Whether some atom has an axis twice."""
    unit = {axis: Extent(0, 1, 1) for axis in AXES}
    return any(
        len({*named, *(axis for axis, _ in segment.strides)}) < len(named) + len(segment.strides)
        for segment in segments(dims, unit)
    )


@given(rules())
def test_the_symbolic_check_is_right(case: Case) -> None:
    dims, named, atom_axes, over = case
    for axes in atom_axes.values():
        assume(all(axis in axes for axis in over))  # what does not cut an atom makes copies of it
    fault = find_axis_fault(dims, named, atom_axes, over)
    event("wrong" if fault else "right")
    assert (fault is None) == is_bijection(case)


def test_what_is_said() -> None:
    h, d = Leaf("h"), Leaf("d")
    axes = {(): ("layer", "h")}
    assert find_axis_fault((h,), ("layer",), axes, {}) is None
    assert find_axis_fault((h,), (), axes, {}) == AxisFault("missing", "layer", ())
    assert find_axis_fault((h, h), ("layer",), axes, {}) == AxisFault("twice", "h", ())
    assert find_axis_fault((h, d), ("layer",), axes, {}) == AxisFault("foreign", "d", ())
    both = {"h": ("tp",), "layer": ("pp", "tp")}
    assert find_axis_fault((h,), ("layer",), axes, both) == AxisFault("mesh", "tp", ())
    fused = (Sum((Part("q", Product((h, d))), Part("k", d))),)
    parts = {("q",): ("h", "d"), ("k",): ("h", "d")}
    assert find_axis_fault(fused, (), parts, {}) == AxisFault("missing", "h", ("k",))
