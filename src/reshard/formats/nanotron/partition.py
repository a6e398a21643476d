"""How nanotron's ZeRO-1 shares the flat elements of a parameter among data-parallel ranks.

All have the ceiling of an equal share but for the last, of which as many as are missing have one
element less; a rank may have none.

Source: nanotron/optim/zero.py `_partition_parameters` (2411b02).
"""

from __future__ import annotations

from itertools import pairwise


def ranges(numel: int, ranks: int) -> tuple[tuple[int, int], ...]:
    """The half-open range of every rank."""
    most = -(-numel // ranks)
    short = most * ranks - numel
    ends = [0]
    for rank in range(ranks):
        ends.append(ends[-1] + most - (rank >= ranks - short))
    return tuple(pairwise(ends))
