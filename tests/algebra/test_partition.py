"""Partitions over data-parallel ranks, against flat arrays that are really cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reshard.algebra.partition import Partition, partition_buffer, partition_each

numels = st.lists(st.integers(0, 20), max_size=6).map(tuple)
ranks = st.integers(1, 5)


def numbered(numels: tuple[int, ...]) -> list[np.ndarray]:
    """Tensors whose elements are all different and not 0."""
    ends = np.cumsum((1, *numels))
    return [np.arange(a, a + n) for a, n in zip(ends, numels, strict=False)]


def rebuilt(cut: Partition, numels: tuple[int, ...]) -> list[np.ndarray]:
    """The ranks' arrays as the shares say; every element of a tensor goes into one."""
    tensors = numbered(numels)
    arrays = [np.zeros(length, int) for length in cut.lengths]
    for share in cut.shares:
        to = arrays[share.rank][share.offset : share.offset + share.numel]
        assert len(to) == share.numel > 0
        assert not to.any()
        to[:] = tensors[share.tensor][share.start : share.start + share.numel]
    flat = [element for array in arrays for element in array if element]
    assert sorted(flat) == [element for tensor in tensors for element in tensor]
    return arrays


@given(numels, ranks, st.integers(1, 4), st.data())
def test_a_buffer_is_cut_into_equal_slices(
    numels: tuple[int, ...], ranks: int, factor: int, data: st.DataObject
) -> None:
    gaps = tuple(data.draw(st.integers(0, 3)) for _ in numels)
    parts = [
        run
        for tensor, gap in zip(numbered(numels), gaps, strict=True)
        for run in (tensor, np.zeros(gap, int))
    ]
    flat = np.concatenate([*parts, np.zeros(0, int)])
    align = ranks * factor
    padded = np.zeros(-(-len(flat) // align) * align, int)
    padded[: len(flat)] = flat
    cut = partition_buffer(numels, ranks, align, gaps)
    found = rebuilt(cut, numels)
    for array, wanted in zip(found, np.split(padded, ranks), strict=True):
        assert array.tolist() == wanted.tolist()
    assert sum(cut.paddings) == len(padded) - len(flat)
    assert [(s.rank, s.offset) for s in cut.shares] == sorted(
        (s.rank, s.offset) for s in cut.shares
    )


@given(numels, ranks)
def test_each_tensor_is_cut_by_itself(numels: tuple[int, ...], ranks: int) -> None:
    cut = partition_each(numels, ranks)
    arrays: list[list[int]] = [[] for _ in range(ranks)]
    for tensor in numbered(numels):
        width = -(-len(tensor) // ranks)
        padded = np.zeros(width * ranks, int)
        padded[: len(tensor)] = tensor
        for array, block in zip(arrays, np.split(padded, ranks), strict=True):
            array.extend(block.tolist())
    assert [array.tolist() for array in rebuilt(cut, numels)] == arrays
    for array, padding in zip(arrays, cut.paddings, strict=True):
        held = len(array) - padding
        assert not any(array[held:])
        assert held == 0 or array[held - 1]


def test_nothing_at_all() -> None:
    assert partition_buffer((), 2, 4) == Partition((), (0, 0), (0, 0))
    assert partition_each((), 2) == Partition((), (0, 0), (0, 0))
