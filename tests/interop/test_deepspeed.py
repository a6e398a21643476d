"""The real DeepSpeed resumes from what reshard writes, at another size and stage, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from framework import HERE, Resume, Resumed, run_framework

pytestmark = [pytest.mark.interop, pytest.mark.covers("deepspeed", "write", "resume")]

# Sums over another number of ranks round differently, more so in bf16.
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2}


def _convert(source: Path, target: Path, to: str) -> None:
    code = "from reshard.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "convert", str(source), str(target), "--to", to]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def _assert_restored(resumed: Resumed, name: str) -> None:
    assert resumed.different == ()
    assert resumed.equal > 0
    assert resumed.global_steps == 3
    precision = "fp32" if "fp32" in name else "bf16"
    assert resumed.first_loss_difference < TOLERANCE[precision]


@pytest.mark.parametrize(
    ("name", "zero", "dp"),
    [
        ("z1_fp32_dp2_untied", 1, 3),
        ("z1_fp32_dp2_untied", 3, 2),
        ("z1_bf16_dp4_tied", 2, 2),
        ("z1_bf16opt_dp2_untied", 1, 4),
        ("z1_fp32_dp4_rr", 1, 4),
        ("z2_bf16_dp2_align", 2, 3),
        ("z2_fp32_dp2_elastic", 1, 1),
        ("z3_fp32_dp2_untied", 3, 3),
        ("z3_bf16_dp3_untied", 1, 2),
    ],
)
def test_deepspeed_resumes_from_a_universal_folder(
    name: str,
    zero: int,
    dp: int,
    fixture_checkpoint: Callable[[str], Path],
    resume: Resume,
    tmp_path: Path,
) -> None:
    case = fixture_checkpoint(name)
    _convert(case / "ckpt", tmp_path / "universal", "deepspeed-universal")
    resumed = resume(case, tmp_path / "universal", universal=True, zero=zero, dp=dp)
    _assert_restored(resumed, name)


@pytest.mark.parametrize(
    ("name", "zero", "dp"),
    [
        ("z1_fp32_dp2_untied", 1, 3),
        ("z1_bf16_dp4_tied", 2, 2),
        ("z2_bf16_dp2_align", 3, 3),
        ("z0_bf16_dp2", 2, 3),
        ("z3_fp32_dp2_untied", 3, 3),
        ("z3_bf16_dp3_untied", 1, 4),
    ],
)
def test_deepspeed_resumes_from_a_native_folder(
    name: str,
    zero: int,
    dp: int,
    fixture_checkpoint: Callable[[str], Path],
    resume: Resume,
    tmp_path: Path,
) -> None:
    case = fixture_checkpoint(name)
    _convert(case / "ckpt", tmp_path / "native", f"deepspeed:zero={zero},dp={dp}")
    resumed = resume(case, tmp_path / "native", zero=zero, dp=dp)
    _assert_restored(resumed, name)
    # A native folder keeps what belongs to each parameter group.
    assert [group["weight_decay"] for group in resumed.param_groups][:2] == [0.1, 0.0]


def test_deepspeed_resumes_from_what_went_through_a_universal_checkpoint(
    fixture_checkpoint: Callable[[str], Path], resume: Resume, tmp_path: Path
) -> None:
    case = fixture_checkpoint("z1_bf16_dp4_tied")
    _convert(case / "ckpt", tmp_path / "universal", "universal")
    _convert(tmp_path / "universal", tmp_path / "native", "deepspeed:zero=3,dp=2")
    _assert_restored(resume(case, tmp_path / "native", zero=3, dp=2), case.name)


@pytest.mark.parametrize(
    ("name", "optimizer", "zero", "dp"),
    [
        ("run_nadam_z2", "nadam", 1, 4),
        ("run_nadam_z2", "nadam", 3, 1),
        ("run_zk_perrank", "adamw", 1, 4),
        ("run_muon_z2_dp4", "muon", 1, 2),
        ("run_muon_z2_dp4", "muon", 3, 2),
    ],
)
def test_deepspeed_resumes_with_other_optimizers(
    name: str,
    optimizer: str,
    zero: int,
    dp: int,
    fixture_checkpoint: Callable[[str], Path],
    interop_python: Path,
    tmp_path: Path,
) -> None:
    case = fixture_checkpoint(name)
    _convert(case / "ckpt", tmp_path / "native", f"deepspeed:zero={zero},dp={dp}")
    report = tmp_path / "report.json"
    truth = str(case / "truth.safetensors")
    command = [str(interop_python), str(HERE / "small_run.py"), truth, str(tmp_path / "native")]
    run_framework([*command, str(report), optimizer, str(zero), str(dp)], tmp_path)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["different"] == []
    assert found["equal"] >= 52
    assert found["numbers"]["step"] == 3
    if optimizer == "nadam":
        assert 0 < found["numbers"]["mu_product"] < 1
    wanted = json.loads((case / "losses.json").read_text(encoding="utf-8"))["next"]
    assert found["losses"] == pytest.approx(wanted, abs=TOLERANCE["fp32"])
