"""Facts of a model survive the way through other frameworks, as transformers computes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from framework import HERE, run_framework

import reshard

pytestmark = [pytest.mark.interop, pytest.mark.covers("transformers", "read", "write")]

SCRIPT = str(HERE / "transformers_models.py")
SHIPPED = (
    "llama-llama3",
    "llama-linear",
    "llama-yarn",
    "llama-gelu",
    "mistral-window",
    "qwen2-window",
    "qwen3-window",
    "phi3",
    "phi3-window",
    "gpt2-relu",
    "gpt2-inverse",
    "neox-sequential",
    "neox-relu",
    "mixtral-one",
    "qwen3_moe-norm",
    "v3-scale",
    "v3-yarn",
    "v2",
    "olmo2-gelu",
)
LOOK_ALIKES = (
    "gemma",
    "granite",
    "smollm3",
    "helium",
    "olmo3",
    "ministral",
    "ernie",
    "stablelm",
    "cohere",
)
"""Models of which there is no layout; most have the names of Llama's tensors."""

EQUAL = {"missing": [], "unexpected": [], "different": [], "logits": True}


def test_logits_are_equal_or_it_is_refused(interop_python: Path, tmp_path: Path) -> None:
    models = (*SHIPPED, *LOOK_ALIKES)
    run_framework([str(interop_python), SCRIPT, "make", str(tmp_path), *models], tmp_path)
    pairs, refused = [], {}
    for model in models:
        for number, to in enumerate(("dcp:dp=2", "megatron:tp=2", "nanotron", "torchtitan")):
            there, back = (tmp_path / f"{model}.{number}.{way}" for way in ("there", "back"))
            try:
                reshard.convert(tmp_path / model, there, to)
            except reshard.ReshardError as error:
                refused[model, number] = error.diagnostics[0].code
                continue
            reshard.convert(there, back, "hf")
            pairs.append(f"{back}={tmp_path / model}")
    assert not [key for key in refused if key[1] == 0], "DCP keeps every name"
    assert {key[0] for key in refused if key[1] == 1} == {*LOOK_ALIKES, "olmo2-gelu"}
    report = tmp_path / "report.json"
    run_framework([str(interop_python), SCRIPT, "check", str(report), *pairs], tmp_path)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert {Path(name).name: item for name, item in found.items() if item != EQUAL} == {}
    assert len(found) > 2 * len(SHIPPED) + len(LOOK_ALIKES)


def test_the_table_of_keys_is_that_of_this_version(interop_python: Path, tmp_path: Path) -> None:
    made = tmp_path / "transformers.json"
    script = str(HERE / "transformers_keys.py")
    run_framework([str(interop_python), script, str(made)], tmp_path)
    table = Path(reshard.__file__).with_name("layouts") / "transformers.json"
    told = json.loads(table.read_text(encoding="utf-8"))
    assert json.loads(made.read_text(encoding="utf-8"))["types"] == told["types"]
