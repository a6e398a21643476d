"""Whole arrays: read, digested, compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from oracle import Made, arrays

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.dtypes import DType
from reshard.engine.compare import Difference, Seen, compare, digest_array, read_array
from reshard.engine.elements import numpy_dtype
from reshard.engine.locate import Place
from reshard.plan.plan import Array, ArraySpec, Copy, Move, Origin
from reshard.store.digest import digest_bytes
from reshard.store.source_files import SourceFiles


def _array(root: Path, name: str, data: np.ndarray, dtype: DType) -> Array:
    (root / name).write_bytes(data.astype(numpy_dtype(dtype)).tobytes())
    piece = Piece(Box.whole(data.shape), 0, row_major(data.shape))
    spec = ArraySpec(name, "param", dtype, data.size, ((name, piece),), data.shape)
    move = Move((data.size,), 0, (1,), 0, (1,))
    return Array(spec, (Copy((Origin(name, 0, None, dtype, move, ""),), "first", name, (0,)),))


def _seen(value: str, file: str, byte_offset: int) -> Seen:
    return Seen(value, Place(file, byte_offset, ""))


@given(made=arrays())
def test_an_array_is_read_and_digested_whole(tmp_path: Path, made: Made) -> None:
    made.write(tmp_path)
    array = made.array()
    with SourceFiles(tmp_path) as files:
        data = made.expected().tobytes()
        found = read_array(array, files)
        assert found.tobytes() == data
        assert found.dtype == numpy_dtype(made.spec.dtype)
        assert digest_array(array, files) == digest_bytes(data)
        assert compare(array, files, array, files) is None


def test_what_differs_is_counted(tmp_path: Path) -> None:
    data = np.arange(600_000, dtype=np.float32)
    other = data.copy()
    other[[7, 550_000]] = [8, -1]
    left, right = (_array(tmp_path, name, x, DType.F32) for name, x in (("a", data), ("b", other)))
    with SourceFiles(tmp_path) as files:
        first = _seen("7.0 (0x40e00000)", "a", 28), _seen("8.0 (0x41000000)", "b", 28)
        assert compare(left, files, right, files) == Difference(
            "values",
            600_000,
            2,
            7,
            550_001.0,
            int(data[550_000:550_001].view("u4")[0]) + 0x3F800000,
            first,
        )


def test_bits_are_compared(tmp_path: Path) -> None:
    left = _array(tmp_path, "a", np.array([0.0, np.nan]), DType.F32)
    right = _array(tmp_path, "b", np.array([-0.0, np.nan]), DType.F32)
    with SourceFiles(tmp_path) as files:
        assert compare(left, files, right, files) == Difference(
            "values",
            2,
            1,
            0,
            0.0,
            0,
            (_seen("0.0 (0x00000000)", "a", 0), _seen("-0.0 (0x80000000)", "b", 0)),
        )


def test_no_finite_difference_is_none(tmp_path: Path) -> None:
    left = _array(tmp_path, "a", np.array([np.inf]), DType.F32)
    right = _array(tmp_path, "b", np.array([1.0]), DType.F32)
    with SourceFiles(tmp_path) as files:
        assert compare(left, files, right, files) == Difference(
            "values",
            1,
            1,
            0,
            None,
            0x7F800000 - 0x3F800000,
            (_seen("inf (0x7f800000)", "a", 0), _seen("1.0 (0x3f800000)", "b", 0)),
        )


def test_types_are_compared_by_value(tmp_path: Path) -> None:
    left = _array(tmp_path, "a", np.array([1.0, 2.0, np.nan]), DType.F32)
    right = _array(tmp_path, "b", np.array([1.0, 2.5, np.nan]), DType.BF16)
    with SourceFiles(tmp_path) as files:
        assert compare(left, files, right, files) == Difference(
            "dtype",
            3,
            1,
            1,
            0.5,
            None,
            (_seen("2.0 (0x40000000)", "a", 4), _seen("2.5 (0x4020)", "b", 2)),
        )


def test_shapes_are_compared_first(tmp_path: Path) -> None:
    left = _array(tmp_path, "a", np.zeros((2, 3)), DType.F32)
    right = _array(tmp_path, "b", np.zeros((3, 2)), DType.F32)
    with SourceFiles(tmp_path) as files:
        assert compare(left, files, right, files) == Difference("shape", 6, 0, 0, None)


def test_nothing_equals_nothing(tmp_path: Path) -> None:
    empty = Array(ArraySpec("a", "param", DType.F32, 0, (), (0, 3)), ())
    with SourceFiles(tmp_path) as files:
        assert read_array(empty, files).shape == (0, 3)
        assert digest_array(empty, files) == digest_bytes(b"")
        assert compare(empty, files, empty, files) is None
