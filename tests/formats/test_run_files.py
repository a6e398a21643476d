"""What lies around a checkpoint: every file is read, goes along, or is listed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard

Fixture = Callable[[str], Path]
CONFIG = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
BESIDE = {
    "config.json": CONFIG,
    "generation_config.json": "{}",
    "tokenizer.json": "{}",
    "trainer_state.json": "{}",
    "rng_state_0.pth": "states",
    "zero_to_fp32.py": "raise SystemExit",
    "notes.txt": "mine",
}


@pytest.fixture
def run(fixture_checkpoint: Fixture, tmp_path: Path) -> Path:
    """A DeepSpeed run with all that a trainer puts around it."""
    folder = tmp_path / "run"
    shutil.copytree(fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt", folder)
    for name, text in BESIDE.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("global_step1/x.pt", "wandb/a.txt", ".git/index", "plots/a.png", "train.log"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")
    for name in ("model.safetensors", "global_step3/zero_pp_rank_7_mp_rank_00_optim_states.pt.tmp"):
        (folder / name).write_text("tensors", encoding="utf-8")
    (folder / "global_step3/.DS_Store").write_text("hidden", encoding="utf-8")
    os.symlink(tmp_path / "elsewhere", folder / "vocab.json")
    return folder


def test_everything_is_accounted_for(run: Path) -> None:
    found = reshard.inspect(run)
    assert sorted(found.side_files) == sorted(BESIDE)
    assert found.nearby == {"other steps": ("global_step1",), "logs": ("train.log", "wandb/")}
    assert {item.file: item.why for item in found.left} == {
        ".DS_Store": "it is a hidden file",
        "zero_pp_rank_7_mp_rank_00_optim_states.pt.tmp": "it looks like a file of other tensors, "
        "or their index",
        "../.git/": "it is a hidden folder",
        "../model.safetensors": "it looks like a file of other tensors, or their index",
        "../plots/": "it is no part of this step",
        "../vocab.json": "it is a link that points outside of the folder",
    }
    text = found.to_text()
    assert "\n  other steps     global_step1\n  logs            train.log, wandb/\n" in text
    assert "\nnot read: 6 files\n" in text


def test_a_target_that_has_a_use_for_them_gets_them(run: Path, tmp_path: Path) -> None:
    reshard.convert(run, tmp_path / "whole", "universal")
    assert {name: (tmp_path / "whole" / name).read_text() for name in BESIDE} == BESIDE
    assert reshard.verify(tmp_path / "whole").ok
    reshard.convert(tmp_path / "whole", tmp_path / "again", "deepspeed:zero=2,dp=1")
    assert {name: (tmp_path / "again" / name).read_text() for name in BESIDE} == BESIDE
    done = reshard.convert(run, tmp_path / "hf", "hf")
    assert {"tokenizer.json", "generation_config.json"} <= set(os.listdir(tmp_path / "hf"))
    assert json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == "llama"
    why = "it belongs to the training run, and a model folder holds none"
    assert [item.file for item in done.report.left if item.why == why and not item.key] == [
        "../rng_state_0.pth",
        "../trainer_state.json",
        "../zero_to_fp32.py",
    ]
    assert "no-model-config" not in [item.code for item in done.report.warnings]


def test_above_a_step_only_known_names_are_looked_for(run: Path) -> None:
    found = reshard.inspect(run / "global_step3")
    assert sorted(found.side_files) == sorted(set(BESIDE) - {"notes.txt"})
    assert not any(item.file.startswith("..") for item in found.left)
    assert found.nearby == {}


def test_the_nearest_of_two_with_one_name_goes_along(run: Path) -> None:
    (run / "global_step3/tokenizer.json").write_text("near", encoding="utf-8")
    reshard.convert(run, run.parent / "out", "universal")
    assert (run.parent / "out/tokenizer.json").read_text() == "near"
    [why] = [item.why for item in reshard.inspect(run).left if item.file == "../tokenizer.json"]
    assert why == "`tokenizer.json` has its name, and lies nearer"
