"""How an axis is cut into consecutive blocks over the ranks of a mesh axis."""

from __future__ import annotations

from typing import Literal

SplitRule = Literal["even", "chunk", "balanced", "sizes"]


def split_sizes(
    total: int, parts: int, rule: SplitRule, sizes: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """The block sizes, one per rank, that sum to `total`.

    Args:  total: elements of the axis.  parts: ranks, >= 1.  sizes: for rule "sizes" alone.
           "even" wants an exact division; "chunk" gives ceil(total / parts) to each rank until the
           axis is used up (torch.chunk, DTensor `Shard`); "balanced" gives the first
           total % parts ranks one more.
    Raises: ValueError when the rule cannot cut this total.
    """
    if rule == "sizes":
        if len(sizes) != parts:
            raise ValueError(f"{len(sizes)} sizes given for {parts} ranks")
        if sum(sizes) != total:
            raise ValueError(f"the sizes sum to {sum(sizes)}, not {total}")
        return sizes
    if rule == "chunk":
        step = -(-total // parts)
        return tuple(max(0, min(step, total - step * rank)) for rank in range(parts))
    if rule == "balanced":
        base, extra = divmod(total, parts)
        return tuple(base + (rank < extra) for rank in range(parts))
    if total % parts:
        raise ValueError(f"{total} / {parts} leaves remainder {total % parts}")
    return (total // parts,) * parts


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple
