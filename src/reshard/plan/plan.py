"""A plan: arrays to be made, and for each the strided copies that fill it. Data only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, overload

from reshard.algebra.piece import Move, Piece
from reshard.dtypes import DType
from reshard.plan.arrangement import StoredPart
from reshard.plan.catalog import Fragment, Upper, show_coord
from reshard.plan.runs import FragmentRuns, place_moves
from reshard.run.states import REMAINDER

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

    @property
    def nbytes_read(self) -> int:
        """Bytes that are taken from all places that are read."""
        origins = self.origins if self.mode != "first" else self.origins[:1]
        return self.numel * sum(
            origin.itemsize + (0 if origin.upper is None else 2) for origin in origins
        )

    @property
    def places(self) -> Iterator[tuple[str, int]]:
        """Where the runs begin that are read: file and byte offset."""
        return ((origin.file, origin.byte_offset) for origin in self.origins)

    @property
    def files(self) -> Iterator[str]:
        """The files that are read."""
        return (file for origin in self.origins for file in origin.files)


@dataclass(frozen=True, slots=True)
class Region:
    """A box of an array, and the local tensors that hold it; its copies are made when asked for.

    However many fragments a local tensor lies in, a plan holds one region of it.

    Args:  parts, moves, runs: at least one of each; a local tensor, the copy from it, and the
           fragments that it lies in. All moves have the same shape and the same destination.
           mode, atom: as for `Copy`.
    """

    parts: tuple[StoredPart, ...]
    moves: tuple[Move, ...]
    runs: tuple[FragmentRuns, ...]
    mode: Mode
    atom: str

    @property
    def move(self) -> Move:
        """The copy from the first local tensor."""
        return self.moves[0]

    @property
    def numel(self) -> int:
        """Elements of the box."""
        return self.moves[0].numel

    @property
    def count(self) -> int:
        """How many copies it is."""
        is_whole = all(len(runs.fragments) == 1 for runs in self.runs)
        return 1 if is_whole else len(place_moves(self.runs, self.moves))

    @property
    def read(self) -> Sequence[StoredPart]:
        """The local tensors that are read."""
        return self.parts if self.mode != "first" else self.parts[:1]

    def copies(self, state: str) -> Iterator[Copy]:
        """The copies of the box from the fragments.

        Args:  state: of the array.
        """
        ends = [(part.dtype, _name(part.coord)) for part in self.parts]
        for places in place_moves(self.runs, self.moves):
            origins = tuple(
                _origin(run, dtype, move, where, state)
                for (run, move), (dtype, where) in zip(places, ends, strict=True)
            )
            yield Copy(origins, self.mode, self.atom)

    @property
    def fragments(self) -> Iterator[Fragment]:
        """The fragments that hold some of the box."""
        for runs, move in zip(self.runs, self.moves, strict=True):
            yield from runs.holding(move)

    @property
    def places(self) -> Iterator[tuple[str, int]]:
        """Where the runs begin that are read: file and byte offset."""
        return ((fragment.file, fragment.byte_offset) for fragment in self.fragments)

    @property
    def files(self) -> Iterator[str]:
        """The files that are read."""
        for fragment in self.fragments:
            if fragment.literal is None:
                yield fragment.file
                if fragment.upper is not None:
                    yield fragment.upper.file


_name = lru_cache(show_coord)


def _origin(run: Fragment, dtype: DType, move: Move, where: str, state: str) -> Origin:
    if state == REMAINDER and run.upper is not None:
        return Origin(run.file, run.byte_offset, None, run.upper.dtype, move, where)
    return Origin(run.file, run.byte_offset, run.literal, dtype, move, where, run.upper)


class RegionCopies(Sequence[Copy]):
    """The copies of some regions, ascending by destination offset; made anew at each look.

    Args:  state: of the array.
    """

    __slots__ = ("_state", "regions")

    def __init__(self, regions: Sequence[Region], state: str) -> None:
        self.regions = tuple(regions)
        self._state = state

    def _made(self) -> list[Copy]:
        copies = [copy for region in self.regions for copy in region.copies(self._state)]
        copies.sort(key=lambda copy: copy.move.dst_offset)
        return copies

    def __iter__(self) -> Iterator[Copy]:
        return iter(self._made())

    def __len__(self) -> int:
        return sum(region.count for region in self.regions)

    @overload
    def __getitem__(self, index: int) -> Copy: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Copy]: ...
    def __getitem__(self, index: int | slice) -> Copy | Sequence[Copy]:
        return self._made()[index]

    def __repr__(self) -> str:
        return repr(self._made())

    @property
    def nbytes_read(self) -> int:
        """Bytes that are taken from all places that are read."""
        if any(runs.has_upper for region in self.regions for runs in region.runs):
            return sum(copy.nbytes_read for copy in self)
        return sum(
            region.numel * sum(part.dtype.itemsize for part in region.read)
            for region in self.regions
        )


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
    copies: Sequence[Copy]

    @property
    def boxes(self) -> Sequence[Copy | Region]:
        """What the copies are made from: few, where a box lies in many fragments."""
        return self.copies.regions if isinstance(self.copies, RegionCopies) else self.copies

    @property
    def copied(self) -> int:
        """Elements that copies write; the rest of the array is zero."""
        return sum(box.numel for box in self.boxes)

    @property
    def nbytes_read(self) -> int:
        """Bytes that are taken from the source, every copy of a replica included."""
        if isinstance(self.copies, RegionCopies):
            return self.copies.nbytes_read
        return sum(copy.nbytes_read for copy in self.copies)


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
        return sum(item.array.nbytes_read for item in self.placed)
