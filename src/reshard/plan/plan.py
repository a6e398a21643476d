"""A plan: arrays to be made, and for each the strided copies that fill it. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reshard.algebra.piece import Move, Piece
from reshard.dtypes import DType
from reshard.plan.catalog import Upper

Mode = Literal["agree", "first", "mean"]
"""What becomes of several places that hold the same elements."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the elements of one copy come from.

    Args:  file: relative to the source's root.  byte_offset: absolute, of the element at offset 0.
           literal: the bytes, when they are no part of a file.
           move: strides and offsets from there to the array that is made.
           dtype: as stored; the engine casts if the array's differs.
           where: for messages, e.g. `tp=0`.
           upper: what each element is joined with; `dtype` is that of what becomes of both.
    """

    file: str
    byte_offset: int
    literal: bytes | None
    dtype: DType
    move: Move
    where: str
    upper: Upper | None = None

    @property
    def itemsize(self) -> int:
        """Bytes from one element of the file to the next."""
        return self.dtype.itemsize if self.upper is None else self.upper.dtype.itemsize

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read for it."""
        if self.literal is not None:
            return ()
        return (self.file,) if self.upper is None else (self.file, self.upper.file)


@dataclass(frozen=True, slots=True)
class Copy:
    """One box of an array and the places that hold it.

    Args:  origins: at least one; all have the same shape and the same destination.
           mode: "agree" (all must be equal bit for bit), "first" (others are not read), or "mean"
                 (float64 mean, rounded once).
           atom: key of the atom that the box is of, for messages.
    """

    origins: tuple[Origin, ...]
    mode: Mode
    atom: str
    box_lo: tuple[int, ...] = ()

    @property
    def move(self) -> Move:
        """The copy from the first place."""
        return self.origins[0].move

    @property
    def numel(self) -> int:
        """Elements of the box."""
        return self.move.numel


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """A dense array that a target wants.

    Args:  label: for messages and progress.  state: state kind.  dtype: as written.
           numel: elements, padding included.
           segments: (atom key, piece of this array); together disjoint; what they leave is zero.
    """

    label: str
    state: str
    dtype: DType
    numel: int
    segments: tuple[tuple[str, Piece], ...]
    shape: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Array:
    """An array with the copies that fill it, ascending by destination offset."""

    spec: ArraySpec
    copies: tuple[Copy, ...]

    @property
    def copied(self) -> int:
        """Elements that copies write; the rest of the array is zero."""
        return sum(copy.numel for copy in self.copies)


@dataclass(frozen=True, slots=True)
class Placed:
    """An array and the place in an output file where it is written.

    Args:  file: relative to the destination.  byte_offset: absolute.
           digest: whether a digest of its bytes is wanted.  crc: whether a crc32 is wanted.
    """

    array: Array
    file: str
    byte_offset: int
    digest: bool = True
    crc: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a conversion does with tensor bytes.

    Args:  root: of the source.  placed: in output order.
    """

    root: str
    placed: tuple[Placed, ...]

    @property
    def bytes_written(self) -> int:
        """Tensor bytes of the output."""
        return sum(item.array.spec.nbytes for item in self.placed)

    @property
    def bytes_read(self) -> int:
        """Tensor bytes that are taken from the source, every copy of a replica included."""
        return sum(
            copy.numel * (origin.itemsize + (0 if origin.upper is None else 2))
            for item in self.placed
            for copy in item.array.copies
            for origin in (copy.origins if copy.mode != "first" else copy.origins[:1])
        )
