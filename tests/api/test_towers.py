"""A model of two towers, each with the layout of a model of its own, under one configuration."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import reshard
from safetensors_files import save

LAYOUTS = """\
model eye {
    axis block = depth
    axis p     = eye_width
    tensor patch [block, p] bias patch_bias [block, p]
}

layout plain of eye {
    config depth     = num_hidden_layers
    config eye_width = hidden_size
    "blocks.{block}.weight" = patch[p] with bias
}

model both {
    include llama
    include eye
}

layout hf of both when model_type == "both" {
    include llama.hf under "language_model." from text_config
    include eye.plain under "vision_tower." from vision_config
}

layout apart of both {
    include llama.torchtitan under "text."
    include eye.plain under "eye."
    config depth, eye_width
}
"""
TEXT = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "hidden_size": 8,
    "intermediate_size": 6,
    "vocab_size": 10,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LAYER = {
    "input_layernorm": (8,),
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "post_attention_layernorm": (8,),
    "mlp.gate_proj": (6, 8),
    "mlp.up_proj": (6, 8),
    "mlp.down_proj": (8, 6),
}


def test_to_other_names_and_back(tmp_path: Path) -> None:
    text = "language_model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{text}model.embed_tokens.weight": (10, 8),
        f"{text}model.norm.weight": (8,),
        f"{text}lm_head.weight": (10, 8),
        **{f"vision_tower.blocks.{n}.{x}": (5,) for n in range(3) for x in ("weight", "bias")},
    }
    for layer in range(2):
        start = f"{text}model.layers.{layer}."
        shapes |= {f"{start}{name}.weight": shape for name, shape in LAYER.items()}
    at, tensors = 0, {}
    for name, shape in shapes.items():
        data = struct.pack(f"<{prod(shape)}f", *range(at, at + prod(shape)))
        tensors[name] = "F32", shape, data
        at += prod(shape)
    model = save(tmp_path / "model" / "model.safetensors", tensors)
    vision = {"num_hidden_layers": 3, "hidden_size": 5}
    config = {"model_type": "both", "text_config": TEXT, "vision_config": vision}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    file = tmp_path / "both.ucl"
    file.write_text(LAYOUTS, encoding="utf-8")

    reshard.convert(model, tmp_path / "apart", "universal", layout=file, names="apart")
    names = reshard.open(tmp_path / "apart").parameters
    assert {"eye.blocks.2.bias", "text.layers.1.ffn_norm.weight"} <= {*names}
    reshard.convert(tmp_path / "apart", tmp_path / "back", "hf", layout=file, names="hf")
    assert reshard.verify(model, tmp_path / "back").ok
    assert json.loads((tmp_path / "back" / "config.json").read_text("utf-8")) == config
