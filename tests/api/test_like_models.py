"""Families that are like one that ships, as docs/adding-a-model.md has them: there and back."""

from __future__ import annotations

import json
import re
import struct
from math import prod
from pathlib import Path

import pytest

import reshard
from safetensors_files import save

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-model.md"
SIZES = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "hidden_size": 8,
    "intermediate_size": 6,
    "vocab_size": 10,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LAYER = {
    "wren": {
        "input_layernorm.weight": (8,),
        "attn.qkv.weight": (16, 8),
        "self_attn.o_proj.weight": (8, 8),
        "post_attention_layernorm.weight": (8,),
        "mlp.fused.weight": (12, 8),
        "mlp.down_proj.weight": (8, 6),
    },
    "finch": {
        "input_layernorm.weight": (8,),
        "self_attn.q_proj.weight": (8, 8),
        "self_attn.k_proj.weight": (4, 8),
        "self_attn.v_proj.weight": (4, 8),
        "self_attn.o_proj.weight": (8, 8),
        "post_attention_layernorm.weight": (8,),
        "mlp.gate_proj.weight": (6, 8),
        "mlp.up_proj.weight": (6, 8),
        "mlp.down_proj.weight": (8, 6),
        "mlp.scale": (8,),
    },
}
EMBED = {"wren": "model.wte.weight", "finch": "model.embed_tokens.weight"}


def source(name: str, folder: Path) -> tuple[Path, Path]:
    """A model folder, every element another number, and the layouts of the page."""
    text = re.search(rf"^```ucl file={name}.ucl\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert text is not None
    file = folder / f"{name}.ucl"
    file.write_text(text[1], encoding="utf-8")
    shapes: dict[str, tuple[int, ...]] = {
        EMBED[name]: (10, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (10, 8),
    }
    for layer in range(4):
        shapes |= {f"model.layers.{layer}.{key}": shape for key, shape in LAYER[name].items()}
    at, tensors = 0, {}
    for key, shape in shapes.items():
        data = struct.pack(f"<{prod(shape)}f", *range(at, at + prod(shape)))
        tensors[key] = "F32", shape, data
        at += prod(shape)
    model = save(folder / "model" / "model.safetensors", tensors)
    config = json.dumps({**SIZES, "model_type": name})
    (model / "config.json").write_text(config, encoding="utf-8")
    return model, file


@pytest.mark.parametrize("name", LAYER)
def test_to_megatron_and_back(name: str, tmp_path: Path) -> None:
    model, file = source(name, tmp_path)
    ranks, back = tmp_path / "ranks", tmp_path / "back"
    reshard.convert(model, ranks, "megatron:tp=2,pp=2", layout=file)
    reshard.convert(ranks, back, "hf", layout=file, names="hf")
    assert reshard.verify(model, back).ok
    config = json.loads((back / "config.json").read_text("utf-8"))
    assert config["model_type"] == name
    assert config["num_key_value_heads"] == 2
