"""The order in which Megatron registers the parameters of a rank: optimizers count them by it.

Source: megatron/core/models/gpt/gpt_model.py, transformer/{transformer_layer,attention,
multi_latent_attention,mlp}.py, transformer/moe/{moe_layer,experts,shared_experts,router}.py,
extensions/transformer_engine.py (core 0.16.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reshard.errors import target_error

_CHILDREN = {
    "": ("embedding", "decoder", "output_layer"),
    "embedding": ("word_embeddings", "position_embeddings", "tokentype_embeddings"),
    "decoder": ("layers", "final_layernorm"),
    "layers": ("input_layernorm", "self_attention", "pre_mlp_layernorm", "mlp"),
    "self_attention": (
        "linear_proj",
        "linear_qkv",
        "linear_q_proj",
        "linear_q_down_proj",
        "linear_q_up_proj",
        "linear_kv_down_proj",
        "linear_kv_up_proj",
        "q_layernorm",
        "k_layernorm",
        "kv_layernorm",
    ),
    "mlp": ("router", "experts", "linear_fc1", "linear_fc2", "shared_experts"),
    "experts": ("weight1", "weight2", "local_experts", "linear_fc1", "linear_fc2"),
    "local_experts": ("linear_fc1", "linear_fc2"),
    "shared_experts": ("gate_weight", "linear_fc1", "linear_fc2"),
}
_LEAVES = ("layer_norm_weight", "layer_norm_bias", "weight", "bias", "expert_bias")
_NUMBERED = re.compile(r"(weight|bias)(\d+)")

Position = tuple[int, ...]


def sort_parameters(names: Sequence[str]) -> list[str]:
    """The names of one rank's parameters, or of one model chunk of it, in Megatron's order.

    Raises: ReshardError[megatron-order] for a name whose place is not known.
    """
    return sorted(names, key=_position)


def is_known(name: str) -> bool:
    """Whether the place of a parameter or of a buffer among the others is known."""
    return _place(name) is not None


def _position(name: str) -> Position:
    place = _place(name)
    if place is None:
        raise target_error(
            "megatron-order",
            f"the place of `{name}` among Megatron's parameters is not known",
            notes=["the optimizer's states have no names there: they are counted in that order"],
            helps=[
                "write the format that names them, `megatron-dist`",
                "or leave the optimizer out with `--states weights`",
            ],
        )
    return place


def _place(name: str) -> Position | None:
    out: list[int] = []
    parent = ""
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if part.isdigit():
            out.append(int(part))
            continue
        children = _CHILDREN.get(parent, ())
        if part in children:
            out.append(children.index(part))
            parent = part
        elif depth == len(parts) - 1:
            leaf = _leaf(part)
            return None if leaf is None else (*out, *leaf)
        else:
            return None
    return tuple(out)


def _leaf(part: str) -> Position | None:
    if part in _LEAVES:
        return (_LEAVES.index(part),)
    match = _NUMBERED.fullmatch(part)
    return (int(match.group(2)), _LEAVES.index(match.group(1))) if match else None
