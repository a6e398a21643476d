"""Writes `src/reshard/layouts/transformers.json`: the keys of model types, and which do nothing.

    python tests/interop/transformers_keys.py src/reshard/layouts/transformers.json

Defaults are those of the configuration classes. That a key of `harmless` does nothing was found by
trying: equal weights and another value of the key give the same logits. Needs transformers.
"""

import json
import sys
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

TYPES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gpt2",
    "gpt_neox",
    "bloom",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "olmo2",
    "bert",
    "gemma2",
    "gemma3_text",
    "glm4_moe",
]

# Bookkeeping, generation, initialization, dropout and losses of training.
HARMLESS = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "auto_map",
    "aux_loss_alpha",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "custom_pipelines",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "ep_size",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "max_position_embeddings",
    "model_type",
    "num_nextn_predict_layers",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "seq_aux",
    "slow_but_exact",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
]

# What the frameworks that train these models compute, where transformers' default is another.
PLAIN: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "gpt_neox": {"use_parallel_residual": False},
    "deepseek_v2": {
        "scoring_func": "softmax",
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "deepseek_v3": {"scoring_func": "sigmoid", "moe_layer_freq": 1, "topk_method": "noaux_tc"},
}
# Keys that no framework that trains such models knows: only a configuration tells their values.
GEMMA = ["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"]
OWN = {
    "gemma2": ["hidden_activation", *GEMMA, "sliding_window"],
    "gemma3_text": ["hidden_activation", *GEMMA, "sliding_window"],
}
# Keys that follow from others: the sizes of latent attention.
FOLLOWS = ["head_dim", "qk_head_dim", "num_key_value_heads"]
# Facts of the class itself, which follow from other keys.
DERIVED = {"layer_types"}


def facts(kind: str) -> dict[str, object]:
    """What is known of one type."""
    default = CONFIG_MAPPING[kind]().to_dict()
    known = {k: v for k, v in default.items() if k not in HARMLESS and k not in DERIVED}
    out: dict[str, object] = {"architecture": CAUSAL[kind]} if kind != "bert" else {}
    out["default"] = dict(sorted(known.items()))
    out["nullable"] = [key for key in sorted(known) if is_nullable(kind, key)]
    if kind in OWN:
        out["own"] = OWN[kind]
    if kind.startswith("deepseek"):
        out["derived"] = FOLLOWS
    if kind in PLAIN:
        out["plain"] = PLAIN[kind]
    return out


def is_nullable(kind: str, key: str) -> bool:
    """Whether the class takes `null`, and keeps it."""
    try:
        return getattr(CONFIG_MAPPING[kind](**{key: None}), key) is None
    except Exception:  # noqa: BLE001 - whatever the class raises
        return False


def text() -> str:
    """The file: one line a type."""
    lines = [f"  {json.dumps(kind)}: {json.dumps(facts(kind))}" for kind in TYPES]
    head = f'"transformers": {json.dumps(transformers.__version__)},\n'
    head += f'"harmless": {json.dumps(HARMLESS)},\n"types": {{\n'
    return "{\n" + head + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
