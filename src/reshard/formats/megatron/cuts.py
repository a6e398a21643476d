"""How tensor parallelism cuts each parameter, by its name.

Source: megatron/core/tensor_parallel/layers.py, megatron/core/transformer/* and megatron/core/ssm/*
`sharded_state_dict` (core 0.12 to 0.20); on packing, megatron/core/transformer/mlp.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.stacks import LAYER

__all__ = ["LAYER", "Cut", "cut_of", "is_expert", "is_language", "is_vocabulary"]

_ATTENTION_OUT = r".*\.(self_attention|attention|inter_attention)\.dense\."
_COPIED = (
    r".*norm\d*\.(weight|bias)",
    r".*layer_?norm_?(weight|bias)?",
    r".*layer_norm_(weight|bias)",
    r".*position_embeddings\.weight",
    r".*tokentype_embeddings\.weight",
    r".*\.(linear_proj|linear_fc2|dense_4h_to_h|out_proj)\.bias\d*",
    _ATTENTION_OUT + r"bias",
    r"(.*\.)?(lm_head|pooler)\.dense\.(weight|bias)",  # plain linear layers, whole on every rank
    r"(.*\.)?binary_head\.(weight|bias)",
    r".*\.router\.(weight|bias|expert_bias|local_tokens_per_expert)",
    r".*shared_experts\.gate_weight",
    r".*\.(rotary_pos_emb\.inv_freq|inv_freq)",
)
_ROWS = (
    r".*word_embeddings(_for_head)?\.weight",
    r"(.*\.)?output_layer\.(weight|bias)",
    r"(.*\.)?lm_head\.bias",
    r".*\.(linear_qkv|query_key_value|linear_q|linear_kv|query|key_value)\.(weight|bias)",
    r".*\.(linear_q_proj|linear_q_up_proj|linear_kv_up_proj)\.(weight|bias)",
    r".*\.eh_proj\.weight",
    r".*\.(A_log|D|dt_bias)",
    r".*\.mixer\.norm\.weight",
    r".*\.softmax_offset",
)
_VOCABULARY = (
    r".*word_embeddings(_for_head)?\.weight",
    r"(.*\.)?output_layer\.(weight|bias)",
    r"(.*\.)?lm_head\.bias",
)
_COLUMNS = (
    r".*\.(linear_proj|linear_fc2|dense_4h_to_h|out_proj)\.weight\d*",
    _ATTENTION_OUT + r"weight",
)
_GATED = r".*\.(linear_fc1|dense_h_to_4h)\.(weight|bias)\d*"
_DOWN = r".*\.(linear_q_down_proj|linear_kv_down_proj)\.weight"
_MAMBA_IN = r".*\.mixer\.in_proj\.weight"
_MAMBA_CONVOLUTION = r".*\.mixer\.conv1d\.(weight|bias)"


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor lies over the tensor-parallel ranks.

    Args:  dims: UCL terms, with `{tp}` where the mesh axis goes.
           unsure: the name does not tell whether it is cut at all.
    """

    dims: str
    unsure: bool = False

    @property
    def copied(self) -> bool:
        """Whether every rank holds all of it."""
        return "{tp}" not in self.dims

    @property
    def dimension(self) -> int:
        """The dimension that is cut."""
        before = self.dims[: self.dims.index("{tp}")]
        return before.partition("(")[0].count(",")


def cut_of(name: str, shape: tuple[int, ...], args: Arguments, *, gated: bool) -> Cut | None:
    """How a parameter is cut; None when its name is not known.

    Args:  shape: on one rank.  gated: whether the first layer of its MLP holds gate and up.
    """
    if name.endswith("experts.weight1"):
        return Cut(
            "[e over ep, _, (gate over {tp} + up over {tp})]"
            if gated
            else "[e over ep, _, rows over {tp}]"
        )
    if name.endswith("experts.weight2"):
        return Cut("[e over ep, cols over {tp}, _]")
    if any(re.fullmatch(p, name) for p in _ROWS):
        return Cut("[rows over {tp}, ...]")
    if any(re.fullmatch(p, name) for p in _COPIED):
        return Cut("[...]")
    if any(re.fullmatch(p, name) for p in _COLUMNS):
        return Cut("[_, cols over {tp}]")
    if re.fullmatch(_GATED, name):
        halves = "[(gate over {tp} + up over {tp}), ...]"
        return Cut(halves if gated else "[rows over {tp}, ...]")
    if re.fullmatch(_DOWN, name):
        return _down(name, shape, args)
    if re.fullmatch(_MAMBA_IN, name):
        return _mamba(shape[0], args, ("z", "x", "b", "c", "dt"))
    if re.fullmatch(_MAMBA_CONVOLUTION, name):
        return _mamba(shape[0], args, ("x", "b", "c"))
    return None


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to the routed experts."""
    return ".experts." in name


def is_language(name: str) -> bool:
    """Whether a parameter is of the language model, which the arguments are about: not of a vision
    tower, nor of what projects its outputs.
    """
    return not re.match(r"(.*\.)?(vision|image|audio|sound|video)_", name)


def is_vocabulary(name: str) -> bool:
    """Whether the rows of a parameter are those of the vocabulary, padded."""
    return any(re.fullmatch(p, name) for p in _VOCABULARY)


def _down(name: str, shape: tuple[int, ...], args: Arguments) -> Cut | None:
    """Down projections of latent attention: copied by Transformer Engine, cut by the local spec."""
    if "linear_q_down_proj" in name:
        whole = args.integer("q_lora_rank")
    else:
        rank, rope = args.integer("kv_lora_rank"), args.integer("qk_pos_emb_head_dim")
        whole = None if rank is None or rope is None else rank + rope
    if whole is None:
        return Cut("[rows over {tp}, ...]", unsure=True)
    if shape[0] == whole:
        return Cut("[...]")
    return Cut("[rows over {tp}, ...]") if shape[0] * args.size("tp") == whole else None


def _mamba(rows: int, args: Arguments, parts: tuple[str, ...]) -> Cut | None:
    """Projections of a Mamba mixer: each part is cut by itself. None if the sizes do not add up."""
    head, state = args.integer("mamba_head_dim"), args.integer("mamba_state_dim")
    groups, hidden = args.integer("mamba_num_groups"), args.integer("hidden_size")
    if not head or not state or not groups or not hidden:
        return None
    heads = args.integer("mamba_num_heads") or 2 * hidden // head
    sizes = {
        "z": heads * head,
        "x": heads * head,
        "b": groups * state,
        "c": groups * state,
        "dt": heads,
    }
    if sum(sizes[part] for part in parts) != rows * args.size("tp"):
        return None
    return Cut("[(" + " + ".join(f"{part}:{sizes[part]} over {{tp}}" for part in parts) + "), ...]")
