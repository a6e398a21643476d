"""Copies that differ although they must not: an error, unless the user says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import reshard
from reshard.plan.build import OnDrift
from reshard.storage.torch_file import TensorRef, open_torch_file

TENSOR = "pos.weight"


@pytest.fixture
def drifted(fixture_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint of two tensor parallel ranks, the second of which has another number at 3."""
    folder = tmp_path / "ckpt"
    shutil.copytree(fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt", folder)
    file = folder / "global_step3" / "mp_rank_01_model_states.pt"
    root = open_torch_file(file).root
    assert isinstance(root, dict)
    ref = root["module"][TENSOR]
    assert isinstance(ref, TensorRef)
    with file.open("r+b") as opened:
        opened.seek(ref.byte_offset + 3 * 4)
        opened.write(np.float32(100).tobytes())
    return folder


def _convert(drifted: Path, on_drift: OnDrift) -> np.ndarray:
    out = drifted.parent / on_drift
    reshard.convert(drifted, out, "universal", on_drift=on_drift)
    return reshard.open(out).read(TENSOR).ravel()


def test_copies_that_differ_are_an_error(drifted: Path) -> None:
    with pytest.raises(reshard.ReshardError) as caught:
        _convert(drifted, "error")
    assert [item.code for item in caught.value.diagnostics] == ["replica-mismatch"]
    assert f"`{TENSOR}`" in str(caught.value)
    assert "--on-drift" in str(caught.value)
    assert not (drifted.parent / "error").exists()
    with pytest.raises(reshard.ReshardError):
        reshard.open(drifted).read(TENSOR)


def test_the_first_copy_or_the_mean(drifted: Path) -> None:
    first, mean = _convert(drifted, "first"), _convert(drifted, "average")
    assert mean[3] == np.float32((float(first[3]) + 100) / 2)
    assert np.delete(mean, 3).tobytes() == np.delete(first, 3).tobytes()


def test_verify_sees_it_twice(drifted: Path) -> None:
    found = reshard.verify(drifted)
    assert not found.ok
    # The file's own checksum, and the copy on the other rank.
    assert sorted(item.code for item in found.faults) == ["crc-mismatch", "replica-mismatch"]


def test_a_part_without_the_difference_can_be_read(drifted: Path) -> None:
    assert reshard.open(drifted).read(TENSOR, slices=(slice(1, None),)).shape == (15, 32)
