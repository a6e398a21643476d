"""Checkpoints of models of any size without their bytes: files with holes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

Shape = tuple[int, ...]

_FILE_NBYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class Model:
    """A model like DeepSeek-V3: latent attention, and experts in all layers but the first."""

    layers: int
    experts: int
    hidden: int = 7168
    heads: int = 128
    vocab: int = 129280
    dense: int = 18432
    expert: int = 2048

    def config(self) -> dict[str, object]:
        """Its `config.json`."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "hidden_size": self.hidden,
            "intermediate_size": self.dense,
            "moe_intermediate_size": self.expert,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "n_routed_experts": self.experts,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "vocab_size": self.vocab,
            "max_position_embeddings": 4096,
            "rope_theta": 10000,
            "rms_norm_eps": 1e-06,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "attention_bias": False,
            "torch_dtype": "bfloat16",
        }

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Names and shapes as transformers has them."""
        h, n = self.hidden, self.heads
        yield "model.embed_tokens.weight", (self.vocab, h)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield at + "input_layernorm.weight", (h,)
            yield at + "self_attn.q_a_proj.weight", (1536, h)
            yield at + "self_attn.q_a_layernorm.weight", (1536,)
            yield at + "self_attn.q_b_proj.weight", (n * 192, 1536)
            yield at + "self_attn.kv_a_proj_with_mqa.weight", (576, h)
            yield at + "self_attn.kv_a_layernorm.weight", (512,)
            yield at + "self_attn.kv_b_proj.weight", (n * 256, 512)
            yield at + "self_attn.o_proj.weight", (h, n * 128)
            yield at + "post_attention_layernorm.weight", (h,)
            if layer == 0:
                yield from _gated(at + "mlp.", self.dense, h)
                continue
            yield at + "mlp.gate.weight", (self.experts, h)
            yield at + "mlp.gate.e_score_correction_bias", (self.experts,)
            yield from _gated(at + "mlp.shared_experts.", self.expert, h)
            for expert in range(self.experts):
                yield from _gated(f"{at}mlp.experts.{expert}.", self.expert, h)
        yield "model.norm.weight", (h,)
        yield "lm_head.weight", (self.vocab, h)

    @property
    def numel(self) -> int:
        """Parameters."""
        return sum(prod(shape) for _, shape in self.tensors())


def _gated(at: str, width: int, hidden: int) -> Iterator[tuple[str, Shape]]:
    yield at + "gate_proj.weight", (width, hidden)
    yield at + "up_proj.weight", (width, hidden)
    yield at + "down_proj.weight", (hidden, width)


def write_weights(model: Model, folder: Path) -> int:
    """A folder of safetensors in bf16 that take no room: all bytes of the tensors are a hole.

    Returns: how many tensors there are.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config()), encoding="utf-8")
    shards: list[dict[str, Shape]] = [{}]
    nbytes = 0
    for name, shape in model.tensors():
        size = 2 * prod(shape)
        if nbytes + size > _FILE_NBYTES and shards[-1]:
            shards.append({})
            nbytes = 0
        shards[-1][name] = shape
        nbytes += size
    where = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, shape in tensors.items():
            end = at + 2 * prod(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
            where[name] = file
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + at)
    index = {"metadata": {"total_size": 2 * model.numel}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return len(where)
