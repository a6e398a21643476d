"""Copies that differ although they must not: an error, unless the user says what to do."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize(
    ("on_drift", "what"),
    [("average", "their mean is taken"), ("first", "the first of them is taken")],
)
def test_what_was_settled_is_told_and_recorded(on_drift: OnDrift, what: str, drifted: Path) -> None:
    told = reshard.plan(drifted, "universal", on_drift=on_drift).warnings
    assert [item.code for item in told] == ["drift-settled"]
    (here,) = _convert(drifted, "first")[3:4]
    bits = here.view("u4")
    assert told[0].render() == (
        f"warning[drift-settled]: copies of `{TENSOR}` (param) differ, and {what}\n"
        f"  = note: 1 of 512 elements differ, by at most {100 - float(here):.9g}, in 2 copies\n"
        f"  = note: first difference at [0, 3] of `{TENSOR}`: "
        f"tp=0 has {here!s} (0x{bits:08x}) in mp_rank_00_model_states.pt, byte 10,956, "
        "tp=1 has 100.0 (0x42c80000) in mp_rank_01_model_states.pt, byte 10,956"
    )
    done = reshard.convert(drifted, drifted.parent / "out", "universal", on_drift=on_drift)
    assert done.report.warnings == told
    assert done.to_json()["warnings"] == [item.to_json() for item in told]
    manifest = json.loads((drifted.parent / "out" / "manifest.json").read_text(encoding="utf-8"))
    (record,) = manifest["provenance"]
    assert record["oddities"] == [item.to_json() for item in told]
    assert record["copies"][TENSOR]["param"] == [2, "mean" if on_drift == "average" else "first"]


def test_copies_that_agree_are_no_warning(fixture_checkpoint: Callable[[str], Path]) -> None:
    source = fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt"
    assert reshard.plan(source, "universal", on_drift="first").warnings == ()
    found = reshard.diff(source)
    assert found.same
    assert found.drifts is not None
    assert (found.drifts.found, found.drifts.copied > 5) == ((), True)


def test_the_copies_of_one_checkpoint(drifted: Path) -> None:
    found = reshard.diff(drifted)
    assert not found.same
    assert found.drifts is not None
    (drift,) = found.drifts.undeclared
    assert (drift.name, drift.state, drift.copies) == (TENSOR, "param", 2)
    assert (drift.numel, drift.numel_different, drift.index) == (512, 1, (0, 3))
    assert drift.between == ("tp=0", "tp=1")
    assert drift.b.value == "100.0 (0x42c80000)"
    assert drift.b.file == "mp_rank_01_model_states.pt"


def test_verify_sees_it_twice(drifted: Path) -> None:
    found = reshard.verify(drifted)
    assert not found.ok
    # The file's own checksum, and the copy on the other rank.
    assert sorted(item.code for item in found.faults) == ["crc-mismatch", "replica-mismatch"]


def test_a_part_without_the_difference_can_be_read(drifted: Path) -> None:
    assert reshard.open(drifted).read(TENSOR, slices=(slice(1, None),)).shape == (15, 32)
