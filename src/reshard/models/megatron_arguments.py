"""Megatron's arguments for a model of another framework: what its names, its shapes, and its
configuration tell.

Source: Megatron-LM, megatron/training/arguments.py (core 0.16.1).
"""

from __future__ import annotations

from collections.abc import Mapping

from reshard.algebra.term import Sum
from reshard.dtypes import DType
from reshard.language.expression import evaluate
from reshard.models.config_json import known_facts
from reshard.models.framework_keys import Facts
from reshard.models.megatron import arguments_for
from reshard.plan.arrangement import Arrangement
from reshard.plan.framework_config import framework_config
from reshard.storage.torch_writer import torch_dtype

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"

_ROUTER = "router"
"""The atom that layers with experts have."""

_OTHER_NAMES = {
    "rope_theta": "rotary_base",
    "rope_parameters.rope_theta": "rotary_base",
    "rms_norm_eps": "norm_epsilon",
    "layer_norm_eps": "norm_epsilon",
    "layer_norm_epsilon": "norm_epsilon",
    "max_position_embeddings": "max_position_embeddings",
    "num_experts_per_tok": "moe_router_topk",
    "initializer_range": "init_method_std",
}
"""What other configurations call the arguments that no tensor shows."""


def is_tied(arrangement: Arrangement) -> bool | None:
    """Whether the output layer is a copy of the embedding; None where the model lacks one."""
    out, embedding = (arrangement.bound.get(name) for name in (OUTPUT, EMBEDDING))
    if out is None or embedding is None:
        return None
    return set(out.atoms.values()) == set(embedding.atoms.values())


def stated_arguments(arrangement: Arrangement) -> dict[str, object]:
    """The arguments that the layout of Megatron's names states in its `config` lines."""
    args = framework_config(arrangement.layout, arrangement.values).get("args")
    return dict(args) if isinstance(args, Mapping) else {}


def facts_for(config: Mapping[str, object], arrangement: Arrangement) -> Facts:
    """Arguments for facts in transformers' words.

    Args:  arrangement: in Megatron's names.
    """
    return arguments_for(
        config,
        is_latent="kv_lora_rank" in stated_arguments(arrangement),
        is_gated=_is_gated(arrangement),
        is_biased=any(name.endswith(".linear_fc1.bias") for name in arrangement.bound),
    )


def _is_gated(arrangement: Arrangement) -> bool:
    layers = (item for name, item in arrangement.bound.items() if ".linear_fc1.weight" in name)
    return any(isinstance(term, Sum) for item in layers for term in item.dims)


def foreign_arguments(arrangement: Arrangement, dtype: DType) -> dict[str, object]:
    """All arguments that tell of the model.

    Args:  arrangement: in Megatron's names.  dtype: of the weights.
    """
    bound = arrangement.bound
    args = stated_arguments(arrangement)
    config = known_facts(arrangement.catalog)
    args.update(_without_names(config, args))
    args.update(facts_for(config, arrangement).words)
    if "kv_lora_rank" in args:
        has_bias = bool(args.get("moe_router_enable_expert_bias"))
        args["moe_router_score_function"] = "sigmoid" if has_bias else "softmax"
        args["moe_router_pre_softmax"] = not has_bias
    norms = [name for name in bound if "norm" in name.rpartition(".")[0] or "norm_" in name]
    learned = any(".position_embeddings." in name for name in bound)
    biased = [name for name in bound if name.endswith(".bias")]
    facts: dict[str, object] = {
        "swiglu": _is_gated(arrangement),
        "normalization": "LayerNorm" if any("bias" in name for name in norms) else "RMSNorm",
        "add_bias_linear": any(".linear_proj." in name for name in biased),
        "add_qkv_bias": any(".linear_qkv." in name for name in biased),
        "qk_layernorm": any(".q_layernorm." in name for name in bound),
        "position_embedding_type": "learned_absolute" if learned else "rope",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": not learned,
        "rotary_interleaved": False,
        "multi_latent_attention": any(".linear_kv_up_proj." in name for name in bound),
        "untie_embeddings_and_output_weights": is_tied(arrangement) is False,
        "num_experts": None,
        "make_vocab_size_divisible_by": arrangement.values.get("vocab_divisor", 128),
        "params_dtype": torch_dtype(dtype),
        "bf16": dtype is DType.BF16,
        "fp16": dtype is DType.F16,
    }
    routed = _routed_layers(arrangement)
    if not all(routed):
        facts["moe_layer_freq"] = routed
    heads, groups = args.get("num_attention_heads"), args.get("num_query_groups")
    facts["group_query_attention"] = groups is not None and groups != heads
    return {**facts, **args}


_LOADED = frozenset(
    """
    num_layers hidden_size ffn_hidden_size seq_length num_attention_heads num_query_groups
    group_query_attention kv_channels max_position_embeddings position_embedding_type
    add_position_embedding use_rotary_position_embeddings rotary_base rotary_percent
    rotary_interleaved add_bias_linear add_qkv_bias swiglu untie_embeddings_and_output_weights
    apply_layernorm_1p normalization num_experts moe_layer_freq moe_ffn_hidden_size moe_router_topk
    moe_router_pre_softmax moe_shared_expert_intermediate_size moe_router_score_function
    moe_router_enable_expert_bias moe_router_topk_scaling_factor padded_vocab_size
    """.split()  # noqa: SIM905
)
"""Arguments of the model that `--use-checkpoint-args` takes from a checkpoint.

Source: Megatron-LM, megatron/training/checkpointing.py `load_args_from_checkpoint`.
"""

_OF_NO_MODEL = ("make_vocab_size_divisible_by", "vocab_size", "init_method_std", "params_dtype")
_PRECISION = ("bf16", "fp16")
_DEFAULTS: Mapping[str, object] = {"norm_epsilon": 1e-5, "bias_gelu_fusion": True}
"""Megatron's own; that of other arguments is none, or false."""


def flags_of(args: Mapping[str, object]) -> list[str]:
    """What the command line of a run must have besides `--use-checkpoint-args`, to compute what the
    model of these arguments does.
    """
    out = []
    for name, value in args.items():
        if name in _LOADED or name in (*_OF_NO_MODEL, *_PRECISION):
            continue
        default = _DEFAULTS.get(name, False)
        if value is None or value == default:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            out.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            items = value if isinstance(value, list | tuple) else (value,)
            out.append(f"--{flag} {','.join(map(str, items))}")
    return out


def _routed_layers(arrangement: Arrangement) -> list[int]:
    """For each layer 1 where it has experts, else 0; nothing where the model does not say so."""
    model, values = arrangement.layout.model, arrangement.values
    router = None if model is None else model.tensors.get(_ROUTER)
    if model is None or router is None or router.only is None:
        return []
    size = model.axes[router.along].size
    count = None if size is None else evaluate(size, values)
    if not isinstance(count, int):
        return []
    return [int(evaluate(router.only, {**values, router.along: at}) is True) for at in range(count)]


def _without_names(config: Mapping[str, object], args: Mapping[str, object]) -> dict[str, object]:
    out: dict[str, object] = {}
    for path, name in _OTHER_NAMES.items():
        value: object = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and name not in args:
            out.setdefault(name, value)
    return out
