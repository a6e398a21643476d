"""Where parameters lie in flat buffers, against buffers made the slow way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reshard.formats.deepspeed.flat import buffer_offsets, buffer_runs, each_numel, each_runs

NUMELS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(NUMELS, st.integers(1, 5), st.data())
def test_runs_of_a_buffer(numels: list[int], count: int, data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(numels), max_size=len(numels)))
    gaps[-1] = 0
    buffer: list[tuple[int, int] | None] = []
    for index, (numel, gap) in enumerate(zip(numels, gaps, strict=True)):
        buffer += [(index, element) for element in range(numel)] + [None] * gap
    end = len(buffer)
    buffer += [None] * (-end % (2 * count))
    own = len(buffer) // count
    partitions = [buffer[rank * own : (rank + 1) * own] for rank in range(count)]
    offsets, found_end = buffer_offsets(numels, gaps)
    assert found_end == end
    for index, (offset, numel) in enumerate(zip(offsets, numels, strict=True)):
        held: list[tuple[int, int] | None] = []
        for run in buffer_runs(offset, numel, own):
            assert run.start == len(held)
            held += partitions[run.partition][run.offset : run.offset + run.numel]
        assert held == [(index, element) for element in range(numel)]


@given(NUMELS, st.integers(1, 5))
def test_runs_of_pieces(numels: list[int], count: int) -> None:
    offset = 0
    for numel in numels:
        own = each_numel(numel, count)
        held: list[int] = []
        for run in each_runs(offset, numel, count):
            assert run.start == len(held) == run.partition * own
            assert run.offset == offset
            held += range(run.start, run.start + run.numel)
        assert held == list(range(numel))
        offset += own
