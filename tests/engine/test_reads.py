"""A part of a tensor costs about the bytes of that part, in few reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, moves, row_major
from reshard.dtypes import DType
from reshard.engine.compare import read_array
from reshard.plan.plan import Array, ArraySpec, Copy, Origin
from reshard.store.source_files import SourceFiles


class _Counting(SourceFiles):
    """Files that count what is read."""

    reads = 0
    nbytes = 0

    def pread_into(self, file: str, byte_offset: int, out: memoryview) -> None:
        self.reads += 1
        self.nbytes += len(out)
        super().pread_into(file, byte_offset, out)


def _read(root: Path, data: np.ndarray, box: Box, order: tuple[int, ...]) -> _Counting:
    """Read a box of a stored matrix, with its axes in another order, and check it."""
    (root / "a").write_bytes(data.tobytes())
    size = tuple(box.size[axis] for axis in order)
    dense = row_major(size)
    dst = Piece(box, 0, tuple(dense[order.index(axis)] for axis in range(len(order))))
    src = Piece(Box.whole(data.shape), 0, row_major(data.shape))
    (move,) = moves(box, [src], dst)
    spec = ArraySpec("a", "param", DType.F32, box.volume, (("a", dst),), size)
    origin = Origin("a", 0, None, DType.F32, move, "")
    array = Array(spec, (Copy((origin,), "first", "a", box.lo),))
    with _Counting(root) as files:
        found = read_array(array, files)
    part = data[tuple(slice(a, b) for a, b in zip(box.lo, box.hi, strict=True))]
    assert np.array_equal(found, part.transpose(order))
    return files


def test_rows_are_read_alone(tmp_path: Path) -> None:
    data = np.arange(1 << 20, dtype=np.float32).reshape(1 << 10, 1 << 10)
    files = _read(tmp_path, data, Box((17, 0), (3, 1 << 10)), (0, 1))
    assert (files.reads, files.nbytes) == (1, 3 << 12)


def test_columns_far_apart_are_read_alone(tmp_path: Path) -> None:
    data = np.arange(1 << 20, dtype=np.float32).reshape(32, 1 << 15)
    files = _read(tmp_path, data, Box((0, 5), (32, 100)), (0, 1))
    assert (files.reads, files.nbytes) == (32, 32 * 400)


def test_columns_close_together_are_read_in_spans(tmp_path: Path) -> None:
    data = np.arange(1 << 20, dtype=np.float32).reshape(1 << 12, 1 << 8)
    files = _read(tmp_path, data, Box((0, 5), (1 << 12, 1)), (0, 1))
    assert files.reads <= 5
    assert files.nbytes <= data.nbytes


def test_a_transpose_is_read_in_spans(tmp_path: Path) -> None:
    data = np.arange(1 << 20, dtype=np.float32).reshape(1 << 10, 1 << 10)
    files = _read(tmp_path, data, Box.whole(data.shape), (1, 0))
    assert files.reads <= 4
    assert files.nbytes == data.nbytes


def test_a_part_of_a_transpose_reads_no_more_than_its_span(tmp_path: Path) -> None:
    data = np.arange(1 << 20, dtype=np.float32).reshape(1 << 10, 1 << 10)
    files = _read(tmp_path, data, Box((100, 3), (10, 20)), (1, 0))
    assert (files.reads, files.nbytes) == (1, (9 * 1024 + 20) * 4)
