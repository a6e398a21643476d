"""A mixture of experts goes to ranks that share experts otherwise than dense layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from megatron_targets import arguments, assert_same, converted, files, root
from safetensors.numpy import save_file

LAYERS, EXPERTS, HIDDEN, HEADS, GROUPS, FFN, VOCAB = 2, 4, 16, 8, 4, 24, 40


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    """A folder of Hugging Face's, its elements numbered."""
    shapes = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.{norm}_layernorm.weight": (HIDDEN,) for norm in ("input", "post_attention")
        }
        shapes |= {f"{at}.self_attn.{x}_proj.weight": (HIDDEN, HIDDEN) for x in "qo"}
        shapes |= {f"{at}.self_attn.{x}_proj.weight": (HIDDEN // 2, HIDDEN) for x in "kv"}
        shapes[f"{at}.block_sparse_moe.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            inside = f"{at}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{inside}.{w}.weight": (FFN, HIDDEN) for w in ("w1", "w3")}
            shapes[f"{inside}.w2.weight"] = (HIDDEN, FFN)
    tensors, first = {}, 0
    for name, shape in shapes.items():
        numel = int(np.prod(shape))
        tensors[name] = np.arange(first, first + numel, dtype=np.float32).reshape(shape)
        first += numel
    folder = tmp_path / "mixtral"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "mixtral",
        "num_hidden_layers": LAYERS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("to", "ranks"),
    [
        ("megatron:tp=2,ep=2", ["00_000", "00_001", "01_000", "01_001"]),
        ("megatron:tp=2,ep=2,etp=1", ["00_000", "01_001"]),
        ("megatron:tp=4,ep=2,etp=2", ["00_000", "01_000", "02_001", "03_001"]),
        ("megatron:tp=2,ep=4,etp=1,dp=2", ["00_000", "00_002", "01_001", "01_003"]),
    ],
)
def test_ranks_that_share_experts(mixtral: Path, tmp_path: Path, to: str, ranks: list[str]) -> None:
    there = converted(mixtral, tmp_path / "there", to)
    found = [Path(file).parent.name for file in files(there) if file.endswith(".pt")]
    assert found == [f"mp_rank_{rank}" for rank in ranks]
    assert_same(mixtral, there)


def test_names_of_transformer_engine(mixtral: Path, tmp_path: Path) -> None:
    engine = {"te": 1, "grouped": 1}
    there = converted(mixtral, tmp_path / "there", "megatron:ep=2", settings=engine)
    names = [name for name in root(there, "mp_rank_00_001")["model"] if ".0." in name]
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in names
    assert "decoder.layers.0.mlp.experts.linear_fc2.weight1" in names
    assert_same(mixtral, there)


def test_arguments_of_a_model_of_hugging_face(mixtral: Path, tmp_path: Path) -> None:
    there = converted(mixtral, tmp_path / "there", "megatron:tp=2,pp=2,ep=2")
    args = arguments(there, "mp_rank_00_000_000")
    assert (args["num_layers"], args["num_experts"], args["moe_router_topk"]) == (2, 4, 2)
    assert (args["num_query_groups"], args["group_query_attention"]) == (4, True)
    assert (args["rotary_base"], args["norm_epsilon"]) == (1e6, 1e-5)
    assert (args["expert_model_parallel_size"], args["data_parallel_size"]) == (2, 2)
    assert (args["no_save_optim"], args["no_save_rng"]) == (True, True)
    assert (there / "latest_checkpointed_iteration.txt").read_text() == "release"
