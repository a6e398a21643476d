"""Sources and arrays at random, and what the arrays must hold, found element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, moves, row_major
from reshard.dtypes import DType
from reshard.engine.elements import bits_dtype
from reshard.plan.plan import Array, ArraySpec, Copy, Origin


@dataclass(frozen=True)
class Part:
    """A box of an atom that lies somewhere in a file."""

    atom: str
    piece: Piece
    file: str
    byte_offset: int


@dataclass(frozen=True)
class Made:
    """A source with one array that is wanted of it."""

    parts: tuple[Part, ...]
    numels: dict[str, int]  # elements of each file behind its first bytes
    spec: ArraySpec
    values: dict[str, np.ndarray]  # of each atom

    def expected(self) -> np.ndarray:
        """The array, by nested loops."""
        out = np.zeros(self.spec.numel, bits_dtype(self.spec.dtype))
        for atom, piece in self.spec.segments:
            for index in product(*map(range, piece.box.size)):
                at = tuple(i + lo for i, lo in zip(index, piece.box.lo, strict=True))
                out[piece.at(at)] = self.values[atom][at]
        return out

    def write(self, root: Path) -> None:
        """The files of the source; what no part holds is 0xee."""
        nbytes = self.spec.dtype.itemsize
        for file, numel in self.numels.items():
            data = np.full(3 + numel * nbytes, 0xEE, np.uint8)
            stored = np.ndarray(numel, bits_dtype(self.spec.dtype), data, 3)
            for part in self.parts:
                if part.file == file:
                    base = (part.byte_offset - 3) // nbytes
                    for index in product(*map(range, part.piece.box.size)):
                        at = tuple(i + lo for i, lo in zip(index, part.piece.box.lo, strict=True))
                        stored[base + part.piece.at(at)] = self.values[part.atom][at]
            (root / file).write_bytes(data.tobytes())

    def array(self, copies: int = 1) -> Array:
        """The array with its copies, each from as many equal places as asked for."""
        found = []
        for atom, piece in self.spec.segments:
            for part in self.parts:
                box = part.piece.box.intersect(piece.box) if part.atom == atom else None
                if box is None:
                    continue
                found.append(copy_of(self.spec, atom, box, [part] * copies, piece))
        return Array(self.spec, tuple(sorted(found, key=lambda copy: copy.move.dst_offset)))


def copy_of(
    spec: ArraySpec, atom: str, box: Box, parts: Sequence[Part], piece: Piece, mode: str = "agree"
) -> Copy:
    """The copy of a box from several parts."""
    origins = tuple(
        Origin(part.file, part.byte_offset, None, spec.dtype, move, f"tp={index}")
        for index, (part, move) in enumerate(
            zip(parts, moves(box, [part.piece for part in parts], piece), strict=True)
        )
    )
    return Copy(origins, mode if len(parts) > 1 else "first", atom, box.lo)


@st.composite
def arrays(draw: st.DrawFn, sizes: st.SearchStrategy[int] | None = None) -> Made:
    """An array of one or two atoms, permuted, padded, and one behind the other along an axis."""
    size = st.integers(1, 4) if sizes is None else sizes
    rank = draw(st.integers(0, 4 if sizes is None else 3))
    dtype = draw(st.sampled_from([DType.U8, DType.BF16, DType.F32, DType.I64, DType.C128]))
    shape = tuple(draw(size) for _ in range(rank))
    order = draw(st.permutations(range(rank)))
    atoms = {"a": shape}
    along = draw(st.integers(0, rank - 1)) if rank and draw(st.booleans()) else None
    if along is not None:
        atoms["b"] = tuple(draw(size) if axis == along else n for axis, n in enumerate(shape))
    # The array: axes in `order`, with room around them.
    whole = [n + draw(st.integers(0, 2)) for n in shape]
    if along is not None:
        whole[along] += atoms["b"][along]
    strides = _strides(whole, order)
    segments = []
    offset = 0
    for name, of in atoms.items():
        segments.append((name, Piece(Box.whole(of), offset, strides)))
        offset += strides[along] * of[along] if along is not None else 0
    numel = int(np.prod(whole, dtype=int))
    spec = ArraySpec("array", "param", dtype, numel, tuple(segments))
    values, start = {}, 1
    for name, of in atoms.items():
        count = int(np.prod(of, dtype=int))
        numbers = np.arange(start, start + count).reshape(of)
        values[name] = _as_bits(numbers, dtype)
        start += count
    parts: list[Part] = []
    numels: dict[str, int] = {}
    for name, of in atoms.items():
        for box in _cells(draw, of):
            file = draw(st.sampled_from(["x.bin", "y.bin"]))
            base = numels.get(file, 0) + draw(st.integers(0, 2))
            room = [n + draw(st.integers(0, 2)) for n in box.size]
            piece = Piece(box, 0, _strides(room, draw(st.permutations(range(rank)))))
            numels[file] = base + max(1, int(np.prod(room, dtype=int)))
            parts.append(Part(name, piece, file, 3 + base * dtype.itemsize))
    return Made(tuple(parts), numels, spec, values)


def _as_bits(numbers: np.ndarray, dtype: DType) -> np.ndarray:
    bits = bits_dtype(dtype)
    if bits.fields is None:
        return numbers.astype(bits)
    out = np.zeros(numbers.shape, bits)
    out["low"], out["high"] = numbers, ~numbers
    return out


def _strides(whole: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense array whose dimensions are the axes in this order."""
    dense = row_major(tuple(whole[axis] for axis in order))
    return tuple(dense[list(order).index(axis)] for axis in range(len(whole)))


def _cells(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Box]:
    """The boxes of a grid over a shape."""
    cuts = []
    for size in shape:
        inner = draw(st.sets(st.integers(1, size), max_size=2)) if size > 1 else set()
        edges = sorted({0, size} | {cut for cut in inner if cut < size})
        cuts.append(list(pairwise(edges)))
    return [
        Box(tuple(lo for lo, _ in cell), tuple(hi - lo for lo, hi in cell))
        for cell in product(*cuts)
    ]
