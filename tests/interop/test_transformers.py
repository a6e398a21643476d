"""transformers loads what was written: the same weights bit for bit, and the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from framework import HERE, run_framework

import reshard

pytestmark = [pytest.mark.interop, pytest.mark.covers("transformers", "read", "write")]

SCRIPT = str(HERE / "transformers_models.py")
MODELS = (
    "llama",
    "llama+tied",
    "mistral",
    "qwen2",
    "qwen2+tied",
    "qwen3",
    "olmo2",
    "gemma2",
    "gemma3",
    "glm4_moe",
    "gpt2",
    "gpt2+tied",
    "gpt_neox",
    "bloom",
    "bloom+tied",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v3",
    "moonlight",
)
NO_MEGATRON = ("olmo2", "bloom", "bloom+tied")
"""Models that Megatron does not have: norms behind the layers, a norm behind the embedding."""

EQUAL = {"missing": [], "unexpected": [], "different": [], "logits": True}


@dataclass(frozen=True)
class Made:
    """Models that transformers saved, and what it says of folders made of them."""

    models: Path
    found: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]


def ways() -> dict[str, Callable[[Path, Path], None]]:
    """How a folder is made of that of a model, by name."""

    def named(src: Path, dst: Path) -> None:
        reshard.convert(src, dst, "universal", names="hf")

    def back(src: Path, dst: Path) -> None:
        middle = dst.with_name(f"{dst.name}.middle")
        reshard.convert(src, middle, "universal")
        reshard.convert(middle, dst, "hf", max_file_size=50_000)

    def megatron(src: Path, dst: Path) -> None:
        ranks = dst.with_name(f"{dst.name}.ranks")
        reshard.convert(src, ranks, "megatron:tp=2,pp=2")
        reshard.convert(ranks, dst, "hf")

    return {"named": named, "back": back, "megatron": megatron}


@pytest.fixture(scope="module")
def made(interop_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every model, every way, in two processes of the framework."""
    folder = tmp_path_factory.mktemp("transformers")
    run_framework([str(interop_python), SCRIPT, "make", str(folder / "models"), *MODELS], folder)
    pairs, failed = [], {}
    for model in MODELS:
        for way, convert in ways().items():
            if way == "megatron" and model in NO_MEGATRON:
                continue
            out = folder / f"{model}.{way}"
            try:
                convert(folder / "models" / model, out)
            except reshard.ReshardError as error:
                failed[out.name] = str(error)
            else:
                pairs.append(f"{out}={folder / 'models' / model}")
    report = folder / "report.json"
    run_framework([str(interop_python), SCRIPT, "check", str(report), *pairs], folder)
    found = json.loads(report.read_text(encoding="utf-8"))
    return Made(folder / "models", {Path(k).name: v for k, v in found.items()}, failed)


@pytest.mark.parametrize(
    ("model", "way"),
    [
        (model, way)
        for way in ways()
        for model in MODELS
        if way != "megatron" or model not in NO_MEGATRON
    ],
)
def test_transformers_loads_the_same_model(model: str, way: str, made: Made) -> None:
    assert made.failed.get(f"{model}.{way}", "") == ""
    assert made.found[f"{model}.{way}"] == EQUAL


def test_a_run_of_deepspeed_is_the_model_that_it_trained(
    interop_python: Path, fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """ZeRO-3 weights in transformers, beside the truth in a folder that another program made."""
    case = fixture_checkpoint("z3_fp32_dp2_untied")
    settings = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    constants = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    reshard.convert(case / "ckpt", tmp_path / "out", "hf", settings=settings | constants)
    command = [str(interop_python), SCRIPT, "truth", str(tmp_path / "truth")]
    run_framework([*command, str(tmp_path / "out"), str(case / "truth.safetensors")], tmp_path)
    report = tmp_path / "report.json"
    pair = f"{tmp_path / 'out'}={tmp_path / 'truth'}"
    run_framework([str(interop_python), SCRIPT, "check", str(report), pair], tmp_path)
    assert json.loads(report.read_text(encoding="utf-8")) == {str(tmp_path / "out"): EQUAL}
