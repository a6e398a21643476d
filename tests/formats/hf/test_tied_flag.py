"""Whether weights are tied is written where transformers would take the other for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from model_folders import counted, safetensors
from test_hub_folders import CONFIG, llama

import reshard

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 16,
    "vocab_size": 16,
}


def _gpt2() -> dict[str, Any]:
    shapes = {"wte.weight": (16, 8), "wpe.weight": (16, 8)}
    for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        shapes |= {f"{norm}.weight": (8,), f"{norm}.bias": (8,)}
    for name, size in (("attn.c_attn", (8, 24)), ("attn.c_proj", (8, 8))):
        shapes |= {f"h.0.{name}.weight": size, f"h.0.{name}.bias": size[1:]}
    for name, size in (("mlp.c_fc", (8, 32)), ("mlp.c_proj", (32, 8))):
        shapes |= {f"h.0.{name}.weight": size, f"h.0.{name}.bias": size[1:]}
    return {f"transformer.{name}": counted(*shape) for name, shape in shapes.items()}


def _converted(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> object:
    source = folder / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(safetensors(tensors))
    unsaid = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
    (source / "config.json").write_text(json.dumps(unsaid), encoding="utf-8")
    reshard.convert(source, folder / "out", "hf")
    return json.loads((folder / "out" / "config.json").read_bytes()).get("tie_word_embeddings")


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_model_without_a_head_is_tied(tmp_path: Path, model_type: str) -> None:
    tensors = llama()
    del tensors["lm_head.weight"]
    config = CONFIG | {"model_type": model_type, "architectures": ["LlamaForCausalLM"]}
    if model_type == "qwen2":
        config["architectures"] = ["Qwen2ForCausalLM"]
        for layer in range(2):
            for name in "qkv":
                bias = f"model.layers.{layer}.self_attn.{name}_proj.bias"
                tensors[bias] = counted(8)
    assert _converted(tmp_path, tensors, config) is True


def test_what_a_type_is_tied_by_itself_needs_no_flag(tmp_path: Path) -> None:
    assert _converted(tmp_path, _gpt2(), GPT2) is None


def test_a_head_of_its_own_is_not_tied_away(tmp_path: Path) -> None:
    tensors = _gpt2() | {"lm_head.weight": counted(16, 8, start=7)}
    assert _converted(tmp_path, tensors, GPT2) is False


def test_a_type_that_is_untied_by_itself_needs_no_flag(tmp_path: Path) -> None:
    assert _converted(tmp_path, llama(), CONFIG) is None
