"""Run by the interpreter that has transformers: makes tiny random models, and loads folders.

    transformers_models.py make DIR FAMILY[+tied] ...
    transformers_models.py truth DIR CONFIG_DIR TRUTH.safetensors
    transformers_models.py check REPORT.json FOLDER=REFERENCE ...

`check` loads both folders with `from_pretrained`; the report says for each folder what transformers
found missing or too much, which weights differ in any bit, and whether the logits are equal.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

transformers.logging.set_verbosity_error()

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**GROUPED, "rope_theta": 5000.0, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {**GROUPED, "head_dim": 16, "sliding_window": None}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 16}),
    "olmo2": ("Olmo2", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 16, "sliding_window": 4}),
    "gemma3": ("Gemma3Text", {**GROUPED, "head_dim": 16, "sliding_window": 4}),
    "glm4_moe": (
        "Glm4Moe",
        {
            **GROUPED,
            "head_dim": 16,
            "attention_bias": True,
            "use_qk_norm": True,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt2": (
        "GPT2",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
    ),
    "gpt_neox": ("GPTNeoX", SIZES),
    "bloom": ("Bloom", {"vocab_size": 96, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen3_moe": ("Qwen3Moe", {**GROUPED, **EXPERTS, "head_dim": 16}),
    "deepseek_v3": ("DeepseekV3", {**LATENT, "q_lora_rank": 24}),
    "moonlight": ("DeepseekV3", {**LATENT, "q_lora_rank": None}),
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
HEADS = {**GROUPED, "head_dim": 8, "pad_token_id": 0}
GPT2 = FAMILIES["gpt2"][1]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-llama3": ("Llama", {**GROUPED, "rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {**GROUPED, "rope_parameters": LINEAR}),
    "llama-yarn": ("Llama", {**GROUPED, "rope_parameters": YARN}),
    "llama-gelu": ("Llama", {**GROUPED, "hidden_act": "gelu"}),
    "mistral-window": ("Mistral", {**GROUPED, "sliding_window": 4}),
    "qwen2-window": ("Qwen2", {**GROUPED, **WINDOW}),
    "qwen3-window": ("Qwen3", {**GROUPED, "head_dim": 16, **WINDOW}),
    "phi3": ("Phi3", {**GROUPED, "pad_token_id": 0}),
    "phi3-window": ("Phi3", {**GROUPED, "pad_token_id": 0, "sliding_window": 4}),
    "gpt2-relu": ("GPT2", {**GPT2, "activation_function": "relu"}),
    "gpt2-inverse": ("GPT2", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "neox-sequential": ("GPTNeoX", {**SIZES, "use_parallel_residual": False}),
    "neox-relu": ("GPTNeoX", {**SIZES, "hidden_act": "relu"}),
    "mixtral-one": ("Mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 1}),
    "qwen3_moe-norm": ("Qwen3Moe", {**GROUPED, **EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "v3-scale": ("DeepseekV3", {**LATENT, "q_lora_rank": 24, "routed_scaling_factor": 7.0}),
    "v3-yarn": ("DeepseekV3", {**LATENT, "q_lora_rank": 24, "rope_parameters": YARN}),
    "v2": ("DeepseekV2", {**LATENT, "q_lora_rank": 24}),
    "olmo2-gelu": ("Olmo2", {**GROUPED, "hidden_act": "gelu"}),
    "gemma": ("Gemma", HEADS),
    "granite": ("Granite", {**GROUPED, "embedding_multiplier": 12.0, "logits_scaling": 8.0}),
    "smollm3": ("SmolLM3", {**GROUPED, "pad_token_id": 0}),
    "helium": ("Helium", HEADS),
    "olmo3": ("Olmo3", GROUPED),
    "ministral": ("Ministral", {**HEADS, "sliding_window": 4}),
    "ernie": ("Ernie4_5", HEADS),
    "stablelm": ("StableLm", GROUPED),
    "cohere": ("Cohere", GROUPED),
}
"""One fact changed in a model that has a layout, and models of which there is none."""
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 4}
PAIR = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 32}
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5", "T5ForConditionalGeneration", {"d_model": 16, "d_kv": 4, "num_layers": 2}),
    "bart": ("Bart", "BartForConditionalGeneration", PAIR),
    "clip": ("CLIP", "CLIPModel", {"text_config": TOWER, "vision_config": TOWER}),
}
"""Models that are not causal, or not of text alone."""


def make(folder: Path, names: list[str]) -> None:
    """Save a model for each name, every parameter at random, biases and norms too."""
    for number, name in enumerate(names):
        family, _, tied = name.partition("+")
        prefix, sizes = {**FAMILIES, **VARIANTS}.get(family) or OTHERS[family][::2]
        config = getattr(transformers, f"{prefix}Config")(
            **sizes, tie_word_embeddings=bool(tied), eos_token_id=2, bos_token_id=1
        )
        torch.manual_seed(number)
        if family in OTHERS:
            model = getattr(transformers, OTHERS[family][1])(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0 if parameter.dim() > 1 else 1.0, 0.2)
        model.eval()
        model.save_pretrained(folder / name, max_shard_size="40KB")


def save_truth(folder: Path, config: str, truth: str) -> None:
    """Save a model of a configuration with the weights `NAME/fp32` of a file."""
    model = AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(config))
    weights = {
        name.removesuffix("/fp32"): value
        for name, value in load_file(truth).items()
        if name.endswith("/fp32")
    }
    model.load_state_dict(weights)
    model.save_pretrained(folder)


def check(report: Path, pairs: list[str]) -> None:
    """Load each pair of folders and compare them."""
    known: dict[str, Any] = {}
    tokens = torch.arange(24).reshape(2, 12) * 7 % 90
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        folder, _, reference = pair.partition("=")
        try:
            found[folder] = compared(folder, reference, known, tokens)
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            found[folder] = {"failed": f"{type(error).__name__}: {error}"}
    report.write_text(json.dumps(found), encoding="utf-8")


def compared(
    folder: str, reference: str, known: dict[str, Any], tokens: torch.Tensor
) -> dict[str, Any]:
    """What transformers finds in a folder, beside another one."""
    if reference not in known:
        known[reference] = loader_of(reference).from_pretrained(reference).eval()
    model, info = loader_of(folder).from_pretrained(folder, output_loading_info=True)
    wanted, got = known[reference].state_dict(), model.eval().state_dict()
    with torch.no_grad():
        logits = [logits_of(item, tokens) for item in (known[reference], model)]
    return {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "different": [
            name
            for name in sorted({*wanted, *got})
            if name not in wanted or name not in got or not same(wanted[name], got[name])
        ],
        "logits": bool(torch.equal(logits[0], logits[1])),
    }


def loader_of(folder: str) -> Any:
    """The class that loads a model."""
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    return getattr(transformers, OTHERS[kind][1]) if kind in OTHERS else AutoModelForCausalLM


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What a model computes."""
    if model.config.model_type == "clip":
        side = model.config.vision_config.image_size
        return model(input_ids=tokens, pixel_values=torch.ones(2, 3, side, side)).logits_per_text
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return model(input_ids=tokens, **more).logits


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have one type, one shape, and the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [item.contiguous().reshape(-1).view(torch.uint8) for item in (one, other)]
    return bool(torch.equal(raw[0], raw[1]))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3:])
    elif sys.argv[1] == "truth":
        save_truth(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        check(Path(sys.argv[2]), sys.argv[3:])
