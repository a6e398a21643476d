"""Facts of a model go to Megatron's arguments and come back from them alone, or are named."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

import reshard
from safetensors_files import save

Shapes = Mapping[str, tuple[int, ...]]

GPT2: dict[str, tuple[int, ...]] = {
    "transformer.wte.weight": (16, 8),
    "transformer.wpe.weight": (32, 8),
    "transformer.h.0.attn.c_attn.weight": (8, 24),
    "transformer.h.0.attn.c_attn.bias": (24,),
    "transformer.h.0.attn.c_proj.weight": (8, 8),
    "transformer.h.0.attn.c_proj.bias": (8,),
    "transformer.h.0.mlp.c_fc.weight": (8, 32),
    "transformer.h.0.mlp.c_fc.bias": (32,),
    "transformer.h.0.mlp.c_proj.weight": (32, 8),
    "transformer.h.0.mlp.c_proj.bias": (8,),
    **{
        f"transformer.{norm}.{kind}": (8,)
        for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f")
        for kind in ("weight", "bias")
    },
}
GPT2_CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "n_positions": 32,
    "vocab_size": 16,
    "layer_norm_epsilon": 1e-5,
}
LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
AT = "model.layers.0."
LLAMA: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (16, 8),
    f"{AT}input_layernorm.weight": (8,),
    f"{AT}self_attn.q_proj.weight": (8, 8),
    f"{AT}self_attn.k_proj.weight": (4, 8),
    f"{AT}self_attn.v_proj.weight": (4, 8),
    f"{AT}self_attn.o_proj.weight": (8, 8),
    f"{AT}post_attention_layernorm.weight": (8,),
    f"{AT}mlp.gate_proj.weight": (12, 8),
    f"{AT}mlp.up_proj.weight": (12, 8),
    f"{AT}mlp.down_proj.weight": (8, 12),
    "model.norm.weight": (8,),
    "lm_head.weight": (16, 8),
}
EXPERTS = 8


def deepseek(*, bias: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of a DeepSeek-V2, or of a V3, whose router has a bias."""
    out: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (16, 8),
        f"{AT}input_layernorm.weight": (8,),
        f"{AT}self_attn.q_proj.weight": (2 * 6, 8),
        f"{AT}self_attn.kv_a_proj_with_mqa.weight": (6, 8),
        f"{AT}self_attn.kv_a_layernorm.weight": (4,),
        f"{AT}self_attn.kv_b_proj.weight": (2 * 8, 4),
        f"{AT}self_attn.o_proj.weight": (8, 2 * 4),
        f"{AT}post_attention_layernorm.weight": (8,),
        f"{AT}mlp.gate.weight": (EXPERTS, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (16, 8),
    }
    if bias:
        out[f"{AT}mlp.gate.e_score_correction_bias"] = (EXPERTS,)
    parts = (*(f"experts.{number}" for number in range(EXPERTS)), "shared_experts")
    for part in parts:
        out |= {f"{AT}mlp.{part}.{name}_proj.weight": (4, 8) for name in ("gate", "up")}
        out[f"{AT}mlp.{part}.down_proj.weight"] = (8, 4)
    return out


def deepseek_config(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 8,
        "intermediate_size": 16,
        "moe_intermediate_size": 4,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 16,
        "kv_lora_rank": 4,
        "q_lora_rank": None,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 2,
        "v_head_dim": 4,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.5,
        "tie_word_embeddings": False,
        **more,
    }


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def there(shapes: Shapes, config: Mapping[str, Any]) -> list[str]:
    """A model folder becomes a Megatron checkpoint that has no `config.json`.

    Returns: what was warned of, as far as it is of the facts of the model.
    """
    tensors = {
        name: ("F32", list(shape), struct.pack(f"<{prod(shape)}f", *range(prod(shape))))
        for name, shape in shapes.items()
    }
    save(Path("model/model.safetensors"), tensors)
    Path("model/config.json").write_text(json.dumps(dict(config)))
    done = reshard.convert("model", "there", "megatron")
    for path in Path("there").rglob("config.json"):
        path.unlink()
    warnings = [item for item in done.report.warnings if item.code == "model-facts-left"]
    return [note for item in warnings for note in item.notes]


def back() -> dict[str, Any]:
    """The configuration that Megatron's arguments alone give."""
    reshard.convert("there", "back", "hf")
    assert reshard.verify("model", "back").ok
    found = json.loads(Path("back/config.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("gelu_new", "gelu_new"),
        ("gelu_pytorch_tanh", "gelu_new"),
        ("gelu", "gelu"),
        ("relu2", "relu2"),
        (None, "gelu_new"),
    ],
)
def test_activations_are_what_megatron_computes(stated: str | None, found: str) -> None:
    config = dict(GPT2_CONFIG)
    if stated is not None:
        config["activation_function"] = stated
    assert there(GPT2, config) == []
    assert back().get("activation_function", "gelu_new") == found


def test_an_activation_that_megatron_has_not_is_named() -> None:
    assert there(GPT2, {**GPT2_CONFIG, "activation_function": "relu"}) == [
        '`activation_function` is "relu"'
    ]


@pytest.mark.parametrize(
    ("stated", "notes"),
    [
        ("gelu", []),
        ("gelu_new", ['`activation_function` is "gelu_new"']),
        (None, ['`activation_function` is "gelu_new"']),
    ],
)
def test_nanogpt_computes_gelu_exactly(stated: str | None, notes: list[str]) -> None:
    config = {**GPT2_CONFIG, "tie_word_embeddings": True}
    assert (
        there(GPT2, config if stated is None else {**config, "activation_function": stated}) == []
    )
    for source in ("model", "there"):
        done = reshard.convert(source, f"{source}-named", "universal", names="nanogpt")
        left = [x for x in done.report.warnings if x.code == "model-facts-left"]
        found = [
            note.replace("hidden_act", "activation_function") for x in left for note in x.notes
        ]
        assert found == notes
    reshard.convert("there-named", "again", "megatron")
    reshard.convert("again", "end", "hf")
    end = json.loads(Path("end/config.json").read_text(encoding="utf-8"))
    assert end["activation_function"] == (stated or "gelu_new")


def test_a_window_that_the_class_does_not_read_is_none() -> None:
    assert there(LLAMA, {**LLAMA_CONFIG, "sliding_window": 4}) == []
    assert "window_size" not in arguments()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"beta_fast": 16.0, "beta_slow": 2.0},
        {"mscale": 0.7, "mscale_all_dim": 0.5},
        {"truncate": False},
    ],
    ids=str,
)
def test_yarn_outside_of_latent_attention_is_carried(more: dict[str, Any]) -> None:
    assert there(LLAMA, {**LLAMA_CONFIG, "rope_scaling": {**YARN, **more}}) == []
    plain = {"beta_fast": 32.0, "beta_slow": 1.0}
    assert back()["rope_scaling"] == {**plain, **YARN, **more}


@pytest.mark.parametrize("more", [{"attention_factor": 1.5}, {"own": 2}], ids=str)
def test_yarn_that_megatron_has_not_is_named(more: dict[str, Any]) -> None:
    [note] = there(LLAMA, {**LLAMA_CONFIG, "rope_scaling": {**YARN, **more}})
    assert note.startswith("`rope_scaling` is ")


def test_yarn_with_a_length_that_nothing_states_is_named() -> None:
    config = {key: value for key, value in LLAMA_CONFIG.items() if key[:4] != "max_"}
    [note] = there(LLAMA, {**config, "rope_scaling": {"type": "yarn", "factor": 4.0}})
    assert note == '`rope_scaling` is {"type": "yarn", "factor": 4.0}'


def arguments() -> dict[str, Any]:
    reshard.convert("there", "universal", "universal")
    manifest = json.loads(Path("universal/manifest.json").read_text(encoding="utf-8"))
    args = manifest["config"]["args"]
    assert isinstance(args, dict)
    return args


def test_a_greedy_router_has_no_groups() -> None:
    groups = {"topk_method": "greedy", "n_group": 4, "topk_group": 2, "num_experts_per_tok": 2}
    assert there(deepseek(bias=False), deepseek_config("deepseek_v2", **groups)) == []
    assert "moe_router_num_groups" not in arguments()
    found = back()
    assert found.get("topk_method", "greedy") == "greedy"


def test_a_router_limited_to_groups_comes_back() -> None:
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    config = deepseek_config("deepseek_v2", **groups, num_experts_per_tok=2)
    assert there(deepseek(bias=False), config) == []
    found = back()
    assert {key: found[key] for key in groups} == groups


def test_groups_that_megatron_would_choose_otherwise_are_named() -> None:
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    config = deepseek_config("deepseek_v2", **groups, num_experts_per_tok=4)
    assert sorted(there(deepseek(bias=False), config)) == [
        "`n_group` is 4",
        "`topk_group` is 2",
        '`topk_method` is "group_limited_greedy"',
    ]
    assert "moe_router_num_groups" not in arguments()


@pytest.mark.parametrize(("groups", "chosen", "best"), [(1, 1, 2), (4, 2, 4), (4, 4, 2)])
def test_groups_of_v3_come_back(groups: int, chosen: int, best: int) -> None:
    config = deepseek_config(
        "deepseek_v3", n_group=groups, topk_group=chosen, num_experts_per_tok=best
    )
    assert there(deepseek(bias=True), config) == []
    found = back()
    assert (found["n_group"], found["topk_group"]) == (groups, chosen)
    assert found["routed_scaling_factor"] == 1.5
