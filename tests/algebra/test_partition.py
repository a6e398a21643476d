"""Partitions over data-parallel ranks, against flat arrays that are really cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import lcm, prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reshard.algebra.partition import (
    Buckets,
    Buffer,
    Each,
    Partition,
    Rows,
    Rule,
    aligned_gaps,
    buckets_of,
    round_robin,
    spread,
    sub_groups,
)

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=6)
RANKS = st.integers(1, 5)
RULES = st.one_of(
    st.builds(Buffer, st.integers(1, 12), st.just(()), st.integers(1, 4), st.booleans()),
    st.builds(Each, st.sampled_from(["padded", "balanced"])),
    st.just(Rows()),
    st.builds(
        Buckets,
        st.none() | st.integers(1, 40),
        st.integers(1, 8),
        st.integers(1, 4),
        st.frozensets(st.integers(0, 5)),
    ),
)
Shape = tuple[int, ...]


def numbered(shapes: Sequence[Shape]) -> list[np.ndarray]:
    """Flat tensors whose elements are all different and not 0."""
    ends = np.cumsum((1, *(prod(shape) for shape in shapes)))
    return [np.arange(a, b) for a, b in pairwise(ends)]


def placed(cut: Partition, shapes: Sequence[Shape]) -> list[np.ndarray]:
    """The ranks' arrays as the shares say; no element is put where another is."""
    tensors = numbered(shapes)
    arrays = [np.zeros(length, int) for length in cut.lengths]
    for share in cut.shares:
        to = arrays[share.rank][share.offset : share.offset + share.numel]
        assert len(to) == share.numel > 0
        assert not to.any()
        to[:] = tensors[share.tensor][share.start : share.start + share.numel]
    return arrays


@given(RULES, SHAPES, RANKS)
def test_what_is_placed_is_read_back(rule: Rule, shapes: list[Shape], ranks: int) -> None:
    cut = spread(rule, shapes, ranks)
    assert len(cut.lengths) == ranks
    order = [(share.rank, share.offset) for share in cut.shares]
    assert order == sorted(order)
    arrays = placed(cut, shapes)
    for tensor, shares in zip(numbered(shapes), cut.by_tensor(len(shapes)), strict=True):
        held = [
            element
            for share in shares
            for element in arrays[share.rank][share.offset : share.offset + share.numel]
        ]
        assert held == tensor.tolist()
    assert tuple(share for shares in cut.by_rank for share in shares) == cut.shares


@given(SHAPES, RANKS, st.integers(1, 12), st.data())
def test_a_buffer_is_cut_into_equal_slices(
    shapes: list[Shape], ranks: int, align: int, data: st.DataObject
) -> None:
    gaps = tuple(data.draw(st.integers(0, 3)) for _ in shapes)
    parts = [
        run
        for tensor, gap in zip(numbered(shapes), gaps, strict=True)
        for run in (tensor, np.zeros(gap, int))
    ]
    flat = np.concatenate([*parts, np.zeros(0, int)])
    multiple = lcm(align, ranks)
    padded = np.zeros(-(-len(flat) // multiple) * multiple, int)
    padded[: len(flat)] = flat
    cut = spread(Buffer(align, gaps), shapes, ranks)
    for array, wanted in zip(placed(cut, shapes), np.split(padded, ranks), strict=True):
        assert array.tolist() == wanted.tolist()
    paddings = cut.paddings(len(flat))
    assert sum(paddings) == len(padded) - len(flat)
    for array, padding in zip(np.split(padded, ranks), paddings, strict=True):
        assert not array[len(array) - padding :].any()


@given(SHAPES, RANKS)
def test_each_tensor_is_cut_by_itself_and_padded(shapes: list[Shape], ranks: int) -> None:
    arrays: list[list[int]] = [[] for _ in range(ranks)]
    for tensor in numbered(shapes):
        width = -(-len(tensor) // ranks)
        padded = np.zeros(width * ranks, int)
        padded[: len(tensor)] = tensor
        for array, block in zip(arrays, np.split(padded, ranks), strict=True):
            array.extend(block.tolist())
    found = placed(spread(Each(), shapes, ranks), shapes)
    assert [array.tolist() for array in found] == arrays


@given(SHAPES, RANKS)
def test_balanced_shares_differ_by_one_element(shapes: list[Shape], ranks: int) -> None:
    found = placed(spread(Each("balanced"), shapes, ranks), shapes)
    arrays: list[list[int]] = [[] for _ in range(ranks)]
    for tensor in numbered(shapes):
        for array, block in zip(arrays, np.array_split(tensor, ranks), strict=True):
            array.extend(block.tolist())
    assert [array.tolist() for array in found] == arrays


@given(SHAPES, RANKS)
def test_rows_are_never_cut(shapes: list[Shape], ranks: int) -> None:
    arrays: list[list[int]] = [[] for _ in range(ranks)]
    for tensor, shape in zip(numbered(shapes), shapes, strict=True):
        rows = tensor.reshape(shape or (1,))
        step = max(1, -(-len(rows) // ranks))
        for rank, array in enumerate(arrays):
            array.extend(rows[rank * step : (rank + 1) * step].ravel().tolist())
    found = placed(spread(Rows(), shapes, ranks), shapes)
    assert [array.tolist() for array in found] == arrays


def test_buckets_are_filled_from_the_last_tensor() -> None:
    shapes = [(6,), (3,), (5,), (2,)]
    rule = Buckets(size=8, align=4, starts=4, apart=frozenset({2}))
    buckets = buckets_of(rule, [6, 3, 5, 2])
    assert [(b.tensors, b.starts, b.length) for b in buckets] == [
        ((3,), (0,), 4),
        ((2,), (0,), 5),
        ((1, 0), (0, 4), 10),
    ]
    cut = spread(rule, shapes, 2)
    first, second = (array.tolist() for array in placed(cut, shapes))
    assert first == [15, 16, 10, 11, 12, 13, 7, 8, 9, 0, 1, 2]
    assert second == [0, 0, 14, 0, 0, 0, 3, 4, 5, 6, 0, 0]


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 5))
def test_gaps_let_every_tensor_begin_at_a_multiple(numels: list[int], multiple: int) -> None:
    at = 0
    gaps = aligned_gaps(numels, multiple)
    for numel, gap in zip(numels, gaps, strict=True):
        assert at % multiple == 0
        assert gap < multiple
        at += numel + gap
    assert not gaps or gaps[-1] == 0


def test_turns() -> None:
    assert round_robin(5, 2) == (0, 2, 4, 1, 3)
    assert round_robin(2, 3) == (0, 1)


def test_sub_groups_are_closed_when_they_are_full() -> None:
    assert sub_groups([4, 4, 4, 2], 2, 4) == [range(2), range(2, 4)]
    assert sub_groups([4, 4, 4, 2], 2, 7) == [range(4)]
    assert sub_groups([4, 4, 4, 2], 1, 1) == [range(n, n + 1) for n in range(4)]


def test_nothing_at_all() -> None:
    for rule in (Buffer(4), Each(), Rows(), Buckets()):
        assert spread(rule, [], 2) == Partition((), (0, 0))
