"""How axes are cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.algebra.split import round_up, split_sizes

totals, parts = st.integers(0, 50), st.integers(1, 12)


@given(totals, parts)
def test_balanced_is_what_numpy_does(total: int, parts: int) -> None:
    wanted = [len(block) for block in np.array_split(np.arange(total), parts)]
    assert list(split_sizes(total, parts, "balanced")) == wanted


@given(totals, parts)
def test_chunk_gives_the_rounded_up_share_until_nothing_is_left(total: int, parts: int) -> None:
    step = -(-total // parts) or 1
    held = [list(range(total))[i : i + step] for i in range(0, total, step)]
    sizes = split_sizes(total, parts, "chunk")
    assert [size for size in sizes if size] == [len(block) for block in held]
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sum(sizes) == total


@given(totals, parts)
def test_even_is_equal_or_refused(total: int, parts: int) -> None:
    if total % parts == 0:
        assert set(split_sizes(total, parts, "even")) == {total // parts}
        return
    with pytest.raises(ValueError, match=f"^{total} / {parts} leaves remainder {total % parts}$"):
        split_sizes(total, parts, "even")


def test_stated_sizes() -> None:
    assert split_sizes(12, 3, "sizes", (3, 9, 0)) == (3, 9, 0)
    with pytest.raises(ValueError, match=r"^2 sizes given for 3 ranks$"):
        split_sizes(12, 3, "sizes", (3, 9))
    with pytest.raises(ValueError, match=r"^the sizes sum to 11, not 12$"):
        split_sizes(12, 2, "sizes", (3, 8))


@given(st.integers(0, 100), st.integers(1, 20))
def test_round_up(value: int, multiple: int) -> None:
    assert round_up(value, multiple) == min(n for n in range(value, 200) if n % multiple == 0)
