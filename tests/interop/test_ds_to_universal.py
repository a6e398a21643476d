"""What DeepSpeed's own converter writes is read, and holds the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from framework import run_framework
from safetensors.numpy import load_file

import reshard

pytestmark = [pytest.mark.interop, pytest.mark.covers("deepspeed", "read")]


ODDITIES = {
    "z3_fp32_dp2_untied": [],
    "toytp_tp2_dp2_z1_fp32": [
        "warning[deepspeed-cut-weights]: weights in the type of the computation are not read of "
        "18 parameters\n"
        "  = note: mp_rank_00_model_states.pt has them cut over ranks or padded, e.g. "
        "`word_embeddings.weight`\n"
        "  = note: their master weights are whole\n"
        "  = help: round them from the master weights with `--dtype`"
    ],
}


@pytest.mark.parametrize("name", ["z3_fp32_dp2_untied", "toytp_tp2_dp2_z1_fp32"])
def test_a_folder_of_ds_to_universal_holds_the_truth(
    name: str,
    fixture_checkpoint: Callable[[str], Path],
    interop_python: Path,
    tmp_path: Path,
) -> None:
    case = fixture_checkpoint(name)
    command = [str(interop_python), "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(case / "ckpt" / "global_step3")]
    command += ["--output_folder", str(tmp_path / "form" / "global_step3_universal")]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    run_framework(command, tmp_path)
    found = reshard.open(tmp_path / "form")
    truth = load_file(case / "truth.safetensors")
    for key, value in truth.items():
        tensor, _, state = key.rpartition("/")
        read = found.read(tensor, "master" if state == "fp32" else state)
        assert read.shape == value.shape
        assert read.tobytes() == value.tobytes(), key
    assert len(truth) > 50
    assert [item.render() for item in found.inspect().oddities] == ODDITIES[name]
