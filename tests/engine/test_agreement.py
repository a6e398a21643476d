"""Copies that should agree, are averaged, or are converted, and what is told when they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import pytest

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, moves, row_major
from reshard.dtypes import DType
from reshard.engine.compare import read_array
from reshard.engine.elements import numpy_dtype
from reshard.errors import Exit, ReshardError
from reshard.plan.plan import Array, ArraySpec, Copy, Origin
from reshard.store.source_files import SourceFiles

Mode = Literal["agree", "first", "mean"]


def _array(
    root: Path,
    stored: list[np.ndarray],
    dtypes: list[DType],
    mode: Mode,
    dtype: DType | None = None,
    state: str = "exp_avg",
) -> Array:
    """Columns 2 and 3 of a (rows, 4) array, from one file each; all of a shape (rows, 2)."""
    rows = len(stored[0])
    for index, data in enumerate(stored):
        (root / f"rank_{index}.pt").write_bytes(data.tobytes())
    box = Box((5, 2), (rows, 2))
    dst = Piece(box, 2, (4, 1))
    src = Piece(box, 0, row_major((rows, 2)))
    origins = tuple(
        Origin(f"rank_{index}.pt", 0, None, of, move, f"tp={index}, pp=0")
        for index, (of, move) in enumerate(
            zip(dtypes, moves(box, [src] * len(stored), dst), strict=True)
        )
    )
    spec = ArraySpec(
        "norm.weight", state, dtype or dtypes[0], rows * 4, (("norm.weight", dst),), (rows, 4)
    )
    return Array(spec, (Copy(origins, mode, "norm.weight", (5, 2)),))


def _pair(dtype: DType = DType.F32) -> list[np.ndarray]:
    left = np.arange(6).reshape(3, 2).astype(numpy_dtype(dtype))
    right = left.copy()
    right[1, 1] += np.array(1).astype(right.dtype)
    right[2, 0] += np.array(2).astype(right.dtype)
    return [left, right]


def test_copies_that_differ_are_an_error(tmp_path: Path) -> None:
    array = _array(tmp_path, _pair(), [DType.F32] * 2, "agree")
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError) as caught:
        read_array(array, files)
    assert caught.value.exit_code == Exit.SOURCE
    assert str(caught.value) == (
        "error[replica-mismatch]: copies of `norm.weight` (exp_avg) differ\n"
        "  = note: tp=0, pp=0 in `rank_0.pt`, tp=1, pp=0 in `rank_1.pt`\n"
        "  = note: 2 of 6 elements differ, by at most 2\n"
        "  = note: first difference at [6, 3]: 3.0 (0x40400000) and 4.0 (0x40800000)\n"
        "  = help: if they are meant to be averaged, write `averaged over tp` after their rule in "
        "the layout\n"
        "  = help: to accept it for all tensors: `--on-drift average` or `--on-drift first`"
    )


def test_a_difference_of_bits_alone_is_an_error(tmp_path: Path) -> None:
    zeros = np.zeros((3, 2), np.float32)
    array = _array(tmp_path, [zeros, -zeros], [DType.F32] * 2, "agree")
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError) as caught:
        read_array(array, files)
    assert "6 of 6 elements differ, by at most 0\n" in str(caught.value)


def test_equal_copies_are_taken_with_every_bit(tmp_path: Path) -> None:
    odd = np.array([[0x7FC00001, 0x80000000]] * 3, np.uint32).view(np.float32)
    for mode in ("agree", "mean", "first"):
        array = _array(tmp_path, [odd] * 3, [DType.F32] * 3, mode)
        with SourceFiles(tmp_path) as files:
            found = read_array(array, files)
        assert found[:, 2:].view(np.uint32).tolist() == odd.view(np.uint32).tolist()
        assert found[:, :2].view(np.uint32).tolist() == [[0, 0]] * 3


def test_the_first_is_taken_without_reading_the_others(tmp_path: Path) -> None:
    array = _array(tmp_path, _pair(), [DType.F32] * 2, "first")
    (tmp_path / "rank_1.pt").unlink()
    with SourceFiles(tmp_path) as files:
        assert read_array(array, files)[:, 2:].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.BF16, DType.F16, DType.C64])
def test_the_mean_is_rounded_once(tmp_path: Path, dtype: DType) -> None:
    array = _array(tmp_path, _pair(dtype), [dtype] * 2, "mean")
    with SourceFiles(tmp_path) as files:
        assert read_array(array, files)[:, 2:].tolist() == [[0, 1], [2, 3.5], [5, 5]]


def test_the_mean_of_three_is_not_rounded_on_the_way(tmp_path: Path) -> None:
    bfloat = ml_dtypes.bfloat16
    stored = [np.full((1, 2), value, bfloat) for value in (256, 2, 1)]
    array = _array(tmp_path, stored, [DType.BF16] * 3, "mean", DType.F32)
    with SourceFiles(tmp_path) as files:
        found = read_array(array, files)
    assert found[0, 2] == np.float32(259 / 3)


def test_the_mean_of_one_number_without_axes(tmp_path: Path) -> None:
    origins = []
    (move,) = moves(Box((), ()), [Piece(Box((), ()), 0, ())], Piece(Box((), ()), 0, ()))
    for index, value in enumerate((1.0, 2.0)):
        literal = np.array(value, np.float32).tobytes()
        origins.append(Origin("", 0, literal, DType.F32, move, f"tp={index}"))
    spec = ArraySpec("s", "step", DType.F32, 1, (("s", Piece(Box((), ()), 0, ())),), ())
    array = Array(spec, (Copy(tuple(origins), "mean", "s", ()),))
    with SourceFiles(tmp_path) as files:
        found = read_array(array, files)
    assert found.shape == ()
    assert found == 1.5


def test_integers_that_differ_are_not_averaged(tmp_path: Path) -> None:
    array = _array(tmp_path, _pair(DType.I64), [DType.I64] * 2, "mean", state="step")
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError) as caught:
        read_array(array, files)
    assert str(caught.value) == (
        "error[replica-mismatch]: copies of `norm.weight` (step) differ, and I64 is not averaged\n"
        "  = note: tp=0, pp=0 in `rank_0.pt`, tp=1, pp=0 in `rank_1.pt`\n"
        "  = note: 2 of 6 elements differ, by at most 2\n"
        "  = note: first difference at [6, 3]: 3 (0x0000000000000003) and 4 (0x0000000000000004)\n"
        "  = help: to use the first copy everywhere: `--on-drift first`"
    )


def test_a_copy_of_another_type_is_converted(tmp_path: Path) -> None:
    left = _pair(DType.BF16)[0]
    stored = [left, left.astype(np.float32)]
    array = _array(tmp_path, stored, [DType.BF16, DType.F32], "agree", DType.F32)
    with SourceFiles(tmp_path) as files:
        found = read_array(array, files)
    assert found.dtype == np.float32
    assert found[:, 2:].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_value_that_the_type_cannot_hold_is_an_error(tmp_path: Path) -> None:
    left = _pair()[0]
    left[2, 1] = 1e6
    array = _array(tmp_path, [left], [DType.F32], "first", DType.F16)
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError) as caught:
        read_array(array, files)
    assert caught.value.exit_code == Exit.TARGET
    assert str(caught.value) == (
        "error[cast-refused]: `norm.weight` (exp_avg) cannot be converted from F32 to F16\n"
        "  = note: a finite value exceeds F16: 1e+06 (0x49742400)\n"
        "  = note: tp=0, pp=0 in `rank_0.pt`\n"
        "  = help: keep F32 for it, or choose a type that can represent its values"
    )


def test_a_difference_in_a_large_box_is_found(tmp_path: Path) -> None:
    left = np.arange(400_000, dtype=np.float32).reshape(-1, 2)
    right = left.copy()
    right[-1, 0] = -1
    array = _array(tmp_path, [left, right], [DType.F32] * 2, "agree")
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError) as caught:
        read_array(array, files)
    assert "1 of 400000 elements differ, by at most 399999\n" in str(caught.value)
    assert "first difference at [200004, 2]: 399998.0 " in str(caught.value)
