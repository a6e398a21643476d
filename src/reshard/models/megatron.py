"""What the arguments of a run say of its model beyond the sizes, and transformers' words for it.

Sources: Megatron-LM, megatron/core/transformer/transformer_config.py, transformer/mlp.py,
fusions/fused_bias_gelu.py, models/common/embeddings (`rotary_pos_embedding.py`,
`yarn_rotary_pos_embedding.py`), transformer/moe/moe_utils.py, megatron/training/arguments.py and
argument_utils.py; transformers' modeling_rope_utils.py, activations.py, models/deepseek_v2 and _v3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources

from reshard.models.framework_keys import Facts, FrameworkKeys, keys_of
from reshard.models.transformers import (
    ACTIVATIONS,
    EXACT_GELU,
    ROPE,
    TANH_GELU,
    WINDOW,
    activation_of,
    rope_of,
    window_of,
)

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
_PLAIN_YARN: Mapping[str, tuple[str, object]] = {
    "factor": ("rotary_scaling_factor", 1.0),
    "original_max_position_embeddings": ("yarn_original_max_position_embeddings", 4096),
    "beta_fast": ("yarn_beta_fast", 32.0),
    "beta_slow": ("yarn_beta_slow", 1.0),
}
"""YaRN of other attention, with what Megatron takes where an argument is not given."""
_ROUNDED = "yarn_correction_range_round_to_int"
_TANH = "gelu_new"


def facts_of(args: Mapping[str, object], *, is_core: bool = True) -> Facts:
    """Facts of a run's model in transformers' words.

    Args:  is_core: whether its model is that of Megatron's core, and not of what was before.
    """
    rope, said = _scaling_of(args)
    words: dict[str, object] = {} if rope is None else {"rope_scaling": rope or None}
    lost: set[str] = set()
    before = _window_before(args.get("window_size"))
    if before is not None and not args.get("window_attn_skip_freq"):
        words["sliding_window"] = before + 1
        said.add("window_size")
    elif args.get("window_size") == [-1, -1]:
        words["sliding_window"] = None
    activation = _activation_of(args, is_core=is_core)
    if activation is not None:
        words["hidden_act"] = activation
        said.add("squared_relu")
    if args.get("multi_latent_attention"):
        router = _router_of(args)
        words.update(router.words)
        said |= router.said
        lost |= router.lost
    return Facts(words, frozenset(said), frozenset(lost))


def _scaling_of(args: Mapping[str, object]) -> tuple[dict[str, object] | None, set[str]]:
    """The scaling of rotary positions, {} for none, None where nothing is said; and the arguments
    that say it.
    """
    factor = args.get("rotary_seq_len_interpolation_factor")
    is_latent = args.get("multi_latent_attention")
    if args.get("position_embedding_type") == "yarn" and not is_latent:
        if args.get("rotary_scaling_factor") in (None, 1):
            return {}, {"position_embedding_type"}  # all of it is as without
        scaling = {key: args.get(name) or plain for key, (name, plain) in _PLAIN_YARN.items()}
        scaling.update(_attention_factor(args, scaling["factor"]))
        if args.get(_ROUNDED) is False:
            scaling["truncate"] = False
        return {"rope_type": "yarn", **scaling}, {"position_embedding_type"}
    if args.get("use_rope_scaling") and not factor:
        scaling = {"factor": args.get("rope_scaling_factor") or 8.0, **_LLAMA3}
        return {"rope_type": "llama3", **scaling}, {"use_rope_scaling"}
    if factor and not args.get("use_rope_scaling"):
        said = {"rotary_seq_len_interpolation_factor"}
        return {"rope_type": "linear", "factor": factor}, said
    if _has_yarn(args):
        scaling = {key: args[name] for key, name in _YARN.items() if args.get(name) is not None}
        return {"rope_type": "yarn", **scaling}, set()
    is_plain = args.get("use_rope_scaling") is False and not factor and not is_latent
    return {} if is_plain and args.get("position_embedding_type") == "rope" else None, set()


def _attention_factor(args: Mapping[str, object], factor: object) -> dict[str, object]:
    """What transformers must be told of how YaRN scales the attention; its own default is the one
    of Megatron.
    """
    scale, all_dim = args.get("mscale"), args.get("mscale_all_dim")
    if scale and all_dim:
        return {"mscale": scale, "mscale_all_dim": all_dim}
    if scale in (None, 1) and not all_dim:
        return {}
    return {"attention_factor": _mscale(factor, scale) / _mscale(factor, all_dim)}


def _mscale(factor: object, scale: object) -> float:
    if not isinstance(factor, (int, float)) or not isinstance(scale, (int, float)) or factor <= 1:
        return 1.0
    return 0.1 * scale * math.log(factor) + 1.0


def _activation_of(args: Mapping[str, object], *, is_core: bool) -> str | None:
    """What a model without gates computes between its linear layers; None where it has gates, or
    the arguments do not tell.

    With the bias fused into it, GELU is its approximation by a tanh. Core has no `openai_gelu`.
    """
    if args.get("swiglu") or args.get("quick_geglu") or "bias_gelu_fusion" not in args:
        return None
    if args.get("squared_relu"):
        return "relu2"
    is_fused = args.get("bias_gelu_fusion") and args.get("add_bias_linear") is not False
    is_old = not is_core or args.get("use_legacy_models") or args.get("use_mcore_models") is False
    return _TANH if is_fused or (is_old and args.get("openai_gelu")) else "gelu"


def _router_of(args: Mapping[str, object]) -> Facts:
    """How tokens choose among groups of experts, as DeepSeek's models do.

    Megatron takes the best `topk // group_topk` experts of each group together, transformers' V2
    the best one, and its V3 the best two.
    """
    groups, chosen = args.get("moe_router_num_groups"), args.get("moe_router_group_topk")
    best = args.get("moe_router_topk")
    words: dict[str, object] = {}
    is_v3 = bool(args.get("moe_router_enable_expert_bias"))
    if is_v3:
        words["routed_scaling_factor"] = args.get("moe_router_topk_scaling_factor") or 1.0
        if best == 1:
            words["norm_topk_prob"] = False  # the score of a single expert stays as it is
    if not groups or not chosen:
        return Facts({**words, **({"n_group": 1, "topk_group": 1} if is_v3 else {})})
    if groups == chosen:
        return Facts(words)  # every group is chosen
    if not _is_group_size(best, chosen, is_v3=is_v3):
        return Facts(words, lost=frozenset(("moe_router_num_groups", "moe_router_group_topk")))
    return Facts(words if is_v3 else {"topk_method": "group_limited_greedy"})


def _is_group_size(best: object, size: object, *, is_v3: bool) -> bool:
    """Whether both take as many experts of a group together."""
    if not isinstance(best, int) or not isinstance(size, int) or not size:
        return False
    return best // size == (2 if is_v3 else 1)


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
    config: Mapping[str, object], *, is_latent: bool, is_gated: bool = True, is_biased: bool = False
) -> Facts:
    """Arguments for facts in transformers' words; `lost` are of its keys.

    Args:  is_latent: whether the model has latent attention.  is_gated: whether its MLP has a
           gate.  is_biased: whether its linear layers have biases.
    """
    args, said = _scaling_for(config, is_latent=is_latent)
    lost: set[str] = set()
    window = window_of(config)
    if window:
        args["window_size"] = (window - 1, 0)
        said.update(WINDOW)
    if not is_gated:
        activation = activation_of(config)
        activation_args = _activation_for(
            activation[1] if activation else None, is_biased=is_biased
        )
        if activation_args is not None:
            args.update(activation_args)
            said.update(ACTIVATIONS)
    if is_latent:
        router = _router_for(config)
        args.update(router.words)
        said |= router.said
        lost |= router.lost
    return Facts(args, frozenset(said), frozenset(lost))


def _activation_for(activation: object, *, is_biased: bool) -> dict[str, object] | None:
    if activation == "relu2":
        return {"squared_relu": True, "bias_gelu_fusion": False}
    if activation in EXACT_GELU:
        return {"bias_gelu_fusion": False}
    return {"bias_gelu_fusion": True} if activation in TANH_GELU and is_biased else None


def _router_for(config: Mapping[str, object]) -> Facts:
    """Arguments of groups of experts. Without them, all experts are one group."""
    is_v3 = config.get("model_type") != "deepseek_v2"
    method = config.get("topk_method") or ("noaux_tc" if is_v3 else "greedy")
    groups, chosen = config.get("n_group"), config.get("topk_group")
    nothing = {"moe_router_num_groups": None, "moe_router_group_topk": None}
    if groups in (None, 0, 1) or method == "greedy":
        return Facts(nothing, frozenset(("topk_method", "n_group", "topk_group")))
    if method != ("noaux_tc" if is_v3 else "group_limited_greedy"):
        return Facts(nothing, lost=frozenset(("topk_method",)))
    best = config.get("num_experts_per_tok")
    if groups != chosen and not _is_group_size(best, chosen, is_v3=is_v3):
        return Facts(nothing, lost=frozenset(("n_group", "topk_group")))
    return Facts({}, frozenset(("topk_method",)))


def _scaling_for(
    config: Mapping[str, object], *, is_latent: bool
) -> tuple[dict[str, object], set[str]]:
    args: dict[str, object] = {}
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    scaled = {
        key: value
        for key, value in rope.items()
        if key not in ("rope_type", "rope_theta") and value is not None
    }
    factor = rope.get("factor")
    if is_latent and kind in ("default", "yarn"):
        args["rope_type"] = "rope" if kind == "default" else "yarn"
        if kind == "yarn" and scaled.keys() <= _YARN.keys() and factor is not None:
            args.update({_YARN[key]: value for key, value in scaled.items()})
            return args, set(ROPE)
    elif kind == "yarn":
        told = _plain_yarn(scaled, config)
        if told is not None:
            return told, set(ROPE)
    elif kind == "llama3" and scaled == {"factor": factor, **_LLAMA3}:
        return {"use_rope_scaling": True, "rope_scaling_factor": factor}, set(ROPE)
    elif kind == "linear" and scaled.keys() == {"factor"} and _is_whole(factor):
        whole = int(str(factor).partition(".")[0])
        return {"rotary_seq_len_interpolation_factor": whole}, set(ROPE)
    return args, set()


def _plain_yarn(
    scaled: Mapping[str, object], config: Mapping[str, object]
) -> dict[str, object] | None:
    """Arguments for YaRN outside of latent attention; None where there are none."""
    scaling = dict(scaled)
    factor, length = scaling.get("factor"), config.get("max_position_embeddings")
    if not scaling.setdefault("original_max_position_embeddings", length):
        return None
    rounded, stated = scaling.pop("truncate", True), scaling.pop("attention_factor", None)
    scale, all_dim = scaling.pop("mscale", None), scaling.pop("mscale_all_dim", None)
    if not (scale and all_dim):
        scale, all_dim = 1.0, 0.0  # transformers takes one alone for none
    if stated is not None and stated != _mscale(factor, scale) / _mscale(factor, all_dim):
        return None
    if not scaling.keys() <= _PLAIN_YARN.keys() or not isinstance(factor, (int, float)):
        return None
    known = {name: scaling.get(key) or plain for key, (name, plain) in _PLAIN_YARN.items()}
    args: dict[str, object] = {"position_embedding_type": "yarn", **known}
    return {**args, "mscale": scale, "mscale_all_dim": all_dim, _ROUNDED: bool(rounded)}


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


@cache
def megatron_keys() -> FrameworkKeys:
    """The arguments that Megatron-LM has, and those that change what the model computes."""
    return replace(keys_of("megatron"), harmless=argument_names())


@cache
def argument_names() -> frozenset[str]:
    """The arguments that Megatron-LM has."""
    folder = resources.files("reshard").joinpath("layouts")
    lines = folder.joinpath("megatron_arguments.txt").read_text("utf-8").splitlines()
    return frozenset(name for line in lines if not line.startswith("#") for name in line.split())
