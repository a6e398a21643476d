"""Where one element of an array comes from."""

from __future__ import annotations

from dataclasses import dataclass

from reshard.algebra.piece import Move
from reshard.plan.plan import Array


@dataclass(frozen=True, slots=True)
class Place:
    """A byte of a file.

    Args:  file: relative to the root of its checkpoint.  byte_offset: absolute; None for a number
           that is written in the file, but not as bytes of its own.
           where: on the mesh, e.g. `tp=0`.
    """

    file: str
    byte_offset: int | None
    where: str

    def __str__(self) -> str:
        at = "" if self.byte_offset is None else f", byte {self.byte_offset:,}"
        return f"{self.file}{at}"

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return {"file": self.file, "byte_offset": self.byte_offset, "where": self.where}


def locate(array: Array, index: int) -> Place | None:
    """The first place that holds an element; None for padding, which no place holds.

    Args:  index: flat, of the array.
    """
    for copy in array.copies:
        inside = _inside(copy.move, index)
        if inside is None:
            continue
        origin = copy.origins[0]
        if origin.literal is not None:
            return Place(origin.file, None, origin.where)
        at = origin.move.src_offset + sum(
            i * step for i, step in zip(inside, origin.move.src_strides, strict=True)
        )
        return Place(origin.file, origin.byte_offset + at * origin.itemsize, origin.where)
    return None


def _inside(move: Move, address: int) -> tuple[int, ...] | None:
    """The index in a move of what it writes to an address; None if it does not write there."""
    rest = address - move.dst_offset
    index = [0] * len(move.shape)
    for axis in sorted(range(len(index)), key=lambda a: -move.dst_strides[a]):
        step = min(max(rest // move.dst_strides[axis], 0), move.shape[axis] - 1)
        index[axis] = step
        rest -= step * move.dst_strides[axis]
    return tuple(index) if rest == 0 and move.numel else None
