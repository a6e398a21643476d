"""How tensor parallelism cuts each parameter, by its name; and the UCL text that says so.

Source: megatron/core/tensor_parallel/layers.py, megatron/core/transformer/* `sharded_state_dict`
(core 0.12 to 0.20); notes on packing in megatron/core/transformer/mlp.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.formats.megatron.arguments import Arguments
from reshard.plan.names import group_names, quantity

LAYER = re.compile(r"((?:^|\.)layers\.)\d+(?=\.)")
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
_TAIL = re.compile(r"(?<=[a-z])\d+$")

_COPIED = (
    r".*norm\d*\.(weight|bias)",
    r".*layer_?norm_?(weight|bias)?",
    r".*layer_norm_(weight|bias)",
    r".*position_embeddings\.weight",
    r".*tokentype_embeddings\.weight",
    r".*\.(linear_proj|linear_fc2|dense|dense_4h_to_h|out_proj)\.bias\d*",
    r".*\.router\.(weight|bias|expert_bias)",
    r".*shared_experts\.gate_weight",
    r".*\.(softmax_offset|rotary_pos_emb\.inv_freq|inv_freq)",
)
_ROWS = (
    r".*word_embeddings\.weight",
    r"(.*\.)?output_layer\.(weight|bias)",
    r".*\.(linear_qkv|query_key_value|linear_q|linear_kv|query|key_value)\.(weight|bias)",
    r".*\.(linear_q_proj|linear_q_up_proj|linear_kv_up_proj)\.(weight|bias)",
    r".*\.eh_proj\.weight",
    r".*\.(A_log|D|dt_bias)",
)
_COLUMNS = (r".*\.(linear_proj|linear_fc2|dense|dense_4h_to_h|out_proj)\.weight\d*",)
_GATED = r".*\.(linear_fc1|dense_h_to_4h)\.(weight|bias)\d*"
_DOWN = r".*\.(linear_q_down_proj|linear_kv_down_proj)\.weight"


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor lies over the tensor-parallel ranks.

    Args:  dims: UCL terms, with `{tp}` where the mesh axis goes.
    """

    dims: str

    @property
    def copied(self) -> bool:
        """Whether every rank holds all of it."""
        return "{tp}" not in self.dims


def cut_of(name: str, shape: tuple[int, ...], args: Arguments) -> Cut | None:
    """How a parameter is cut; None when its name is not known.

    Args:  shape: on one rank.
    """
    if name.endswith("experts.weight1"):
        return Cut(
            "[e over ep, _, (gate over {tp} + up over {tp})]"
            if _is_gated(args)
            else "[e over ep, _, rows over {tp}]"
        )
    if name.endswith("experts.weight2"):
        return Cut("[e over ep, cols over {tp}, _]")
    if any(re.fullmatch(p, name) for p in _COPIED):
        return Cut("[...]")
    if any(re.fullmatch(p, name) for p in _ROWS):
        return Cut("[rows over {tp}, ...]")
    if any(re.fullmatch(p, name) for p in _COLUMNS):
        return Cut("[_, cols over {tp}]")
    if re.fullmatch(_GATED, name):
        gated = "[(gate over {tp} + up over {tp}), ...]"
        return Cut(gated if _is_gated(args) else "[rows over {tp}, ...]")
    if re.fullmatch(_DOWN, name):
        return _down(name, shape, args)
    return None


def _is_gated(args: Arguments) -> bool:
    return bool(args.get("swiglu") or args.get("gated_linear_unit"))


def _down(name: str, shape: tuple[int, ...], args: Arguments) -> Cut | None:
    """Down projections of latent attention: copied by Transformer Engine, cut by the local spec."""
    if "linear_q_down_proj" in name:
        whole = args.integer("q_lora_rank")
    else:
        rank, rope = args.integer("kv_lora_rank"), args.integer("qk_pos_emb_head_dim")
        whole = None if rank is None or rope is None else rank + rope
    if whole is None:
        return None
    if shape[0] == whole:
        return Cut("[...]")
    return Cut("[rows over {tp}, ...]") if shape[0] * args.size("tp") == whole else None


def layout_text(
    shapes: Mapping[str, tuple[int, ...]], args: Arguments, stages: tuple[int, ...], vpp: int
) -> str:
    """The layout of a legacy checkpoint, without a model.

    Args:  shapes: one local shape for each stored name.
           stages: layers of every virtual chunk, chunk major, then stage.
    Raises: ReshardError[uncovered-parameter] when a name is not known and tp > 1.
    """
    rules: dict[str, str] = {}
    unknown: list[str] = []
    one = args.size("tp") == 1 and args.size("ep") == 1
    for name, shape in shapes.items():
        cut = cut_of(name, shape, args)
        if cut is None and not one:
            unknown.append(name)
            continue
        dims = cut.dims if cut is not None else "[...]"
        axis = "etp" if is_expert(name) and args.expert_tp != args.size("tp") else "tp"
        rules.setdefault(_pattern(name, len(stages) > 1), dims.replace("{tp}", axis))
    if unknown:
        raise _uncovered(unknown, args)
    mesh = ["pp", "tp", "ep", "dp"]
    if vpp > 1:
        mesh.insert(0, "vpp")
    if "etp" in "".join(rules.values()):
        mesh.insert(-1, "etp")
    lines = ["# Read from the checkpoint's arguments and names.", "layout megatron {"]
    lines.append(f"    mesh {', '.join(mesh)}")
    if len(stages) > 1:
        over = "vpp, pp" if vpp > 1 else "pp"
        lines.append(f"    place layer over {over} as {', '.join(map(str, stages))}")
    lines.append("")
    width = max((len(pattern) for pattern in rules), default=0) + 2
    for pattern, dims in rules.items():
        quoted = f'"{pattern}"'
        lines.append(f"    {quoted:<{width}} = {dims}")
    return "\n".join([*lines, "}", ""])


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to the routed experts."""
    return ".experts." in name


def _pattern(name: str, staged: bool) -> str:
    """A name as a pattern: layers counted on their stage, experts on their rank."""
    slot = "{local layer}" if staged else "{layer}"
    out = LAYER.sub(lambda m: m.group(1) + slot, name, count=1)
    head, experts, tail = out.partition(".local_experts.")
    if experts:
        tail = re.sub(r"^\d+", "{local e over ep}", tail)
        out = head + experts + tail
    elif ".experts." in out and _TAIL.search(out):
        out = _TAIL.sub("{local e over ep}", out)
    return _INDEX.sub("*", out)


def _uncovered(names: Iterable[str], args: Arguments) -> ReshardError:
    groups = group_names(list(names))
    return ReshardError(
        [
            Diagnostic(
                "uncovered-parameter",
                f"how `{group}`{quantity(count)} is cut over tp is not known",
                notes=(f"the run had tp={args.size('tp')}, ep={args.size('ep')}",),
                helps=("say it in a layout of your own, and give it with `--layout FILE`",),
            )
            for group, count in groups
        ],
        Exit.LAYOUT,
    )
