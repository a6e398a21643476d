"""What the arguments of a run say of its model beyond the sizes, and transformers' words for it.

Sources: Megatron-LM, megatron/core/transformer/transformer_config.py, models/common/embeddings
(`rotary_pos_embedding.py`, `yarn_rotary_pos_embedding.py`), transformer/moe/router.py,
megatron/training/arguments.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources

from reshard.formats.model_facts import ROPE, WINDOW, rope_of, window_of

_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What `--use-rope-scaling` has built in."""
_YARN = {
    "factor": "rotary_scaling_factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}
"""YaRN of latent attention: transformers' words and the arguments."""
_OFF: tuple[object, ...] = (None, False, 0)

_CHANGING: Mapping[str, tuple[object, ...]] = {
    "activation_func_clamp_value": _OFF,
    "apply_layernorm_1p": _OFF,
    "apply_residual_connection_post_layernorm": _OFF,
    "attention_output_gate": _OFF,
    "embed_layernorm": _OFF,
    "enable_mhc_connections": _OFF,
    "experimental_attention_variant": _OFF,
    "glu_linear_offset": _OFF,
    "heterogeneous_layers_config_encoded_json": _OFF,
    "heterogeneous_layers_config_path": _OFF,
    "hybrid_layer_pattern": _OFF,
    "hybrid_override_pattern": _OFF,
    "is_hybrid_model": _OFF,
    "layernorm_zero_centered_gamma": _OFF,
    "linear_attention_freq": _OFF,
    "moe_apply_probs_on_input": _OFF,
    "moe_latent_size": _OFF,
    "moe_mlp_glu_interleave_size": _OFF,
    "moe_router_force_load_balancing": _OFF,
    "moe_router_group_topk": _OFF,
    "moe_router_load_balancing_type": (
        None,
        "aux_loss",
        "seq_aux_loss",
        "global_aux_loss",
        "quantile_balancing",
        "none",
    ),
    "moe_router_num_groups": _OFF,
    "moe_router_pre_softmax": _OFF,
    "moe_router_score_function": (None, "softmax"),
    "moe_router_topk_scaling_factor": (None, False, 0, 1.0),
    "moe_shared_expert_glu_interleave_size": _OFF,
    "mrope_section": _OFF,
    "multi_latent_attention": _OFF,
    "no_rope_freq": _OFF,
    "position_embedding_type": (None, "rope", "learned_absolute"),
    "qk_l2_norm": _OFF,
    "quick_geglu": _OFF,
    "rotary_interleaved": _OFF,
    "rotary_percent": (None, 1.0),
    "rotary_seq_len_interpolation_factor": _OFF,
    "softmax_scale": _OFF,
    "softmax_type": (None, "vanilla"),
    "squared_relu": _OFF,
    "use_mup": _OFF,
    "use_rope_scaling": _OFF,
    "window_attn_skip_freq": _OFF,
    "window_size": _OFF,
}
"""Arguments that change what the model computes, with the values that change nothing."""


def facts_of(args: Mapping[str, object]) -> tuple[dict[str, object], frozenset[str]]:
    """Facts of a run's model in transformers' words, and the arguments that they say."""
    facts: dict[str, object] = {}
    said: set[str] = set()
    factor = args.get("rotary_seq_len_interpolation_factor")
    if args.get("use_rope_scaling") and not factor:
        facts["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": args.get("rope_scaling_factor") or 8.0,
            **_LLAMA3,
        }
        said.add("use_rope_scaling")
    elif factor and not args.get("use_rope_scaling"):
        facts["rope_scaling"] = {"rope_type": "linear", "factor": factor}
        said.add("rotary_seq_len_interpolation_factor")
    elif _has_yarn(args):
        told = {key: args[name] for key, name in _YARN.items() if args.get(name) is not None}
        facts["rope_scaling"] = {"rope_type": "yarn", **told}
    before = _window_before(args.get("window_size"))
    if before is not None and not args.get("window_attn_skip_freq"):
        facts["sliding_window"] = before + 1
        said.add("window_size")
    return facts, frozenset(said)


def _window_before(window: object) -> int | None:
    """Tokens before a token that it attends to; None for all, or where later ones are seen, too."""
    if not isinstance(window, (list, tuple)) or len(window) != 2 or window[1] != 0:
        return None
    first = window[0]
    return first if isinstance(first, int) and first >= 0 else None


def _has_yarn(args: Mapping[str, object]) -> bool:
    """Whether latent attention scales its positions; a factor of 1 is no scaling."""
    if not args.get("multi_latent_attention") or args.get("rope_type", "yarn") != "yarn":
        return False
    return args.get("rotary_scaling_factor") not in (None, 1, 1.0)


def arguments_for(
    config: Mapping[str, object], *, is_latent: bool
) -> tuple[dict[str, object], frozenset[str]]:
    """Arguments for facts in transformers' words, and the keys that they say.

    Args:  is_latent: whether the model has latent attention.
    """
    args: dict[str, object] = {}
    said: set[str] = set()
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    scaled = {key: value for key, value in rope.items() if key not in ("rope_type", "rope_theta")}
    factor = rope.get("factor")
    if is_latent and kind in ("default", "yarn"):
        args["rope_type"] = "rope" if kind == "default" else "yarn"
        if kind == "yarn" and scaled.keys() <= _YARN.keys() and factor is not None:
            args.update({_YARN[key]: value for key, value in scaled.items()})
            said.update(ROPE)
    elif kind == "llama3" and scaled == {"factor": factor, **_LLAMA3}:
        args.update(use_rope_scaling=True, rope_scaling_factor=factor)
        said.update(ROPE)
    elif kind == "linear" and scaled.keys() == {"factor"} and _is_whole(factor):
        args["rotary_seq_len_interpolation_factor"] = int(str(factor).partition(".")[0])
        said.update(ROPE)
    window = window_of(config)
    if window:
        args["window_size"] = (window - 1, 0)
        said.update(WINDOW)
    return args, frozenset(said)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, float)) and value == int(value)


def router_of_latent(args: Mapping[str, object]) -> set[str]:
    """Arguments of the router that are as models of latent attention have them.

    V3 scores by sigmoid and has a bias for each expert; V2 takes the softmax of all experts first.
    """
    score = args.get("moe_router_score_function")
    if args.get("moe_router_enable_expert_bias"):
        is_known = score in (None, "sigmoid")
    else:
        is_known = score in (None, "softmax")
    return {"moe_router_score_function", "moe_router_pre_softmax"} if is_known else set()


def unsaid(args: Mapping[str, object], said: Collection[str]) -> dict[str, object]:
    """Arguments that change what the model computes, and that nothing takes up.

    Args:  said: those that a layout or a fact takes up.
    """
    return {
        name: args[name]
        for name, plain in _CHANGING.items()
        if name in args and name not in said and not _is_plain(args[name], plain)
    }


def _is_plain(value: object, plain: tuple[object, ...]) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, plain) for item in value)
    return value in plain


def unknown(args: Mapping[str, object]) -> tuple[str, ...]:
    """Arguments that Megatron-LM itself does not have, and that are not off."""
    return tuple(sorted(k for k, v in args.items() if k not in argument_names() and v not in _OFF))


@cache
def argument_names() -> frozenset[str]:
    """The arguments that Megatron-LM has."""
    folder = resources.files("reshard").joinpath("layouts")
    lines = folder.joinpath("megatron_arguments.txt").read_text("utf-8").splitlines()
    return frozenset(name for line in lines if not line.startswith("#") for name in line.split())
