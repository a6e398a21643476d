"""Models of which some layers have experts, and some none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_folders import counted, safetensors

import reshard
from reshard.errors import ReshardError
from torch_files import loaded

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 8,
    "intermediate_size": 12,
    "moe_intermediate_size": 4,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "vocab_size": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
}


def folder(path: Path, routed: list[int], **config: Any) -> Path:
    """A model whose layers have experts where that is said."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (16, 8)}
    for layer, has_experts in enumerate(routed):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
        shapes |= {f"{at}.self_attn.{name}_norm.weight": (4,) for name in "qk"}
        shapes |= {f"{at}.{n}_layernorm.weight": (8,) for n in ("input", "post_attention")}
        mlps = [(f"{at}.mlp", 12)]
        if has_experts:
            shapes[f"{at}.mlp.gate.weight"] = (2, 8)
            mlps = [(f"{at}.mlp.experts.{expert}", 4) for expert in range(2)]
        for name, size in mlps:
            shapes |= {f"{name}.{part}_proj.weight": (size, 8) for part in ("gate", "up")}
            shapes[f"{name}.down_proj.weight"] = (8, size)
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (16, 8)}
    tensors = {
        name: counted(*shape, start=100 * at) for at, (name, shape) in enumerate(shapes.items())
    }
    path.mkdir()
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    (path / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    return path


def test_megatron_is_told_which_layers_have_experts(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", [0, 1, 0, 1], decoder_sparse_step=2)
    reshard.convert(source, tmp_path / "out", "megatron:tp=2")
    path = tmp_path / "out/release/mp_rank_01/model_optim_rng.pt"
    assert loaded(path)["args"].state[0]["moe_layer_freq"] == [0, 1, 0, 1]
    reshard.convert(tmp_path / "out", tmp_path / "back", "hf")
    assert reshard.verify(source, tmp_path / "back").ok
    stated = json.loads((tmp_path / "back/config.json").read_text(encoding="utf-8"))
    assert stated["decoder_sparse_step"] == 2


def test_megatron_is_told_nothing_where_all_layers_are_alike(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", [1, 1, 1, 1])
    reshard.convert(source, tmp_path / "out", "megatron")
    args = loaded(tmp_path / "out/release/mp_rank_00/model_optim_rng.pt")["args"]
    assert "moe_layer_freq" not in args.state[0]


def test_layers_that_are_listed_one_by_one_keep_their_names(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", [1, 0, 1, 1], mlp_only_layers=[1])
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "megatron:tp=2")
    assert str(caught.value).split("\n")[:3] == [
        "error[no-layout-fits]: the configuration has settings of the model that no known layout "
        "describes",
        "  = note: `mlp_only_layers` is [1]: a list of the layers without experts",
        "  = note: it stores `model.embed_tokens.weight`",
    ]
    reshard.convert(source, tmp_path / "universal", "universal")
    done = reshard.convert(tmp_path / "universal", tmp_path / "back", "hf")
    assert done.next_step.startswith("transformers loads it")
    assert reshard.verify(source, tmp_path / "back").ok


def test_two_rotary_bases_that_differ_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 700.0}
    source = folder(tmp_path / "hf", [True] * 4, rope_theta=500.0, rope_parameters=rope)
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "megatron:tp=2")
    assert str(caught.value) == (
        "error[other-facts]: the source's `config.json` states two bases of rotary positions\n"
        "  = note: `rope_theta` is 500.0\n"
        "  = note: `rope_parameters.rope_theta` is 700.0, which transformers 5 uses\n"
        "  = help: remove the one that the model was not trained with from `config.json`"
    )
    assert not (tmp_path / "out").exists()
    reshard.convert(source, tmp_path / "hf2", "hf")
    assert (tmp_path / "hf2" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    same = folder(tmp_path / "same", [True] * 4, rope_parameters=rope | {"rope_theta": 10000.0})
    reshard.convert(same, tmp_path / "ranks", "megatron:tp=2")
    args = loaded(tmp_path / "ranks" / "release" / "mp_rank_00" / "model_optim_rng.pt")["args"]
    assert args.state[0]["rotary_base"] == 10000.0
