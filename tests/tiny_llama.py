"""A Llama of transformers with one layer, every element another number."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

from safetensors_files import save

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "hidden_size": 8,
    "intermediate_size": 6,
    "vocab_size": 10,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
SHAPES = {
    "model.embed_tokens.weight": (10, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (8, 8),
    "model.layers.0.self_attn.v_proj.weight": (8, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.mlp.gate_proj.weight": (6, 8),
    "model.layers.0.mlp.up_proj.weight": (6, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 6),
    "model.norm.weight": (8,),
    "lm_head.weight": (10, 8),
}


def write(folder: Path, **config: object) -> Path:
    """A model folder.  Args: config: keys of `config.json` that are others."""
    at, tensors = 0, {}
    for name, shape in SHAPES.items():
        data = struct.pack(f"<{prod(shape)}f", *range(at, at + prod(shape)))
        tensors[name] = "F32", shape, data
        at += prod(shape)
    made = save(folder / "model.safetensors", tensors)
    (made / "config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    return made
