"""`reshard diff`: how two checkpoints differ, and the copies within one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Case, Golden, Run

from reshard.api.source import open_source


@pytest.fixture
def changed(run: Run, case: Case, here: Path) -> Path:
    """A universal copy of a checkpoint in which some things are different."""
    run("convert", case("z1_bf16_dp4_tied"), "one", "--to", "universal", "--quiet")
    shutil.copytree("one", "two")
    stored = {(t.name, t.state): t for t in open_source("two").catalog.tensors}
    for layer in (0, 1):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        fragment = stored[name, "exp_avg"].fragments[0]
        with (here / "two" / fragment.file).open("r+b") as file:
            file.seek(fragment.byte_offset + 4 * (41 + layer))
            file.write(np.array([1.5 + layer, -0.0], "<f4").tobytes())
    return here


def test_two_checkpoints(changed: Path, run: Run, golden: Golden) -> None:
    said = run("diff", "one", "two")
    assert (said.code, said.err) == (6, "")
    golden("diff/values.txt", said.out)


def test_two_formats_and_what_only_one_has(
    changed: Path, run: Run, case: Case, golden: Golden
) -> None:
    words = ("--to", "deepspeed:zero=3,dp=2", "--quiet", "--states", "master,exp_avg,step")
    assert run("convert", "two", "three", *words).code == 0
    said = run("diff", "z1_bf16_dp4_tied", "three")
    assert (said.code, said.err) == (6, "")
    golden("diff/formats.txt", said.out)


def test_element_types_are_compared_by_value(changed: Path, run: Run) -> None:
    assert run("convert", "one", "bf16", "--to", "universal", "--dtype", "master=bf16").code == 0
    found = json.loads(run("diff", "one", "bf16", "--json").out)
    assert len(found["mismatches"]) == 20
    first = found["mismatches"][0]
    assert (first["what"], first["a"], first["b"]) == ("dtype", "F32", "BF16")
    assert 0 < first["elements_different"] <= first["elements"] == 3880
    assert first["max_abs"] < 0.01


def test_the_same(run: Run, case: Case, here: Path) -> None:
    case("z1_fp32_dp2_untied")
    words = ("convert", "z1_fp32_dp2_untied", "out", "--to", "deepspeed:zero=2,dp=3", "--quiet")
    assert run(*words).code == 0
    said = run("diff", "z1_fp32_dp2_untied", "out")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "the same bit for bit: 105 tensors, 484.6 kB\n  A  z1_fp32_dp2_untied\n  B  out\n"
    )
    assert run("diff", "z1_fp32_dp2_untied", "out", "--quiet").out == ""


def test_copies_within_one(run: Run, case: Case, here: Path, golden: Golden) -> None:
    said = run("diff", case("toytp_tp2_dp2_z1_fp32"))
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "copies agree: toytp_tp2_dp2_z1_fp32\n  54 tensors of 90 are stored more than once\n"
    )
    shutil.copytree("toytp_tp2_dp2_z1_fp32", "drifted", symlinks=False)
    file = here / "drifted" / "global_step3" / "mp_rank_01_model_states.pt"
    with file.open("r+b") as opened:
        opened.seek(10_956)
        opened.write(np.float32(100).tobytes())
    said = run("diff", "drifted")
    assert (said.code, said.err) == (6, "")
    golden("diff/copies.txt", said.out)
