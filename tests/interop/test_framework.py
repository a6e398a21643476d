"""Controls: what the harness says about checkpoints that the real DeepSpeed wrote itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from framework import Resume, run_framework

pytestmark = pytest.mark.interop


def test_deepspeed_resumes_from_its_own_checkpoint(
    fixture_checkpoint: Callable[[str], Path], resume: Resume
) -> None:
    case = fixture_checkpoint("z1_bf16_dp4_tied")
    resumed = resume(case, case / "ckpt")
    assert resumed.different == ()
    assert resumed.equal == 60
    assert resumed.losses == resumed.expected_losses
    assert resumed.global_steps == 3
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.1, 0.0]


def test_one_wrong_bit_is_seen(
    fixture_checkpoint: Callable[[str], Path], resume: Resume, tmp_path: Path
) -> None:
    case = tmp_path / "case"
    shutil.copytree(fixture_checkpoint("z3_fp32_dp2_untied"), case)
    truth = case / "truth.safetensors"
    content = bytearray(truth.read_bytes())
    content[-1] ^= 1
    truth.write_bytes(content)
    resumed = resume(case, case / "ckpt")
    assert len(resumed.different) == 1
    assert resumed.equal == 62


def test_a_case_made_now_is_resumed(make_case: Callable[..., Path], resume: Resume) -> None:
    case = make_case("z2_fp32_dp3", like="z1_fp32_dp2_untied", zero_stage=2, dp=3)
    resumed = resume(case, case / "ckpt")
    assert resumed.different == ()
    assert resumed.losses == resumed.expected_losses


def test_deepspeeds_own_universal_folder_is_resumed_at_another_size(
    fixture_checkpoint: Callable[[str], Path],
    interop_python: Path,
    resume: Resume,
    tmp_path: Path,
) -> None:
    case = fixture_checkpoint("z1_fp32_dp2_untied")
    command = [str(interop_python), "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(case / "ckpt" / "global_step3")]
    command += ["--output_folder", str(tmp_path / "universal" / "global_step3_universal")]
    run_framework(command, tmp_path)
    resumed = resume(case, tmp_path / "universal", universal=True, dp=3, zero=2)
    assert resumed.different == ()
    assert resumed.first_loss_difference < 2e-5
