"""The files of ranks that Megatron loads hold the source, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from megatron_targets import LLAMA, arguments, assert_same, converted, files, root

Fixture = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("z1_fp32_dp2_untied", "megatron:pp=2"),
        ("z1_fp32_dp2_untied", "megatron:pp=2,adam=fused"),
        ("z1_bf16_dp4_tied", "megatron"),
        ("z1_bf16_dp4_tied", "megatron:pp=2"),
        ("z1_bf16_dp4_tied", "megatron:pp=2,dp=2,bucket_size=4000"),
        ("z1_bf16_dp4_tied", "megatron:pp=2,distributed_optimizer=0"),
        ("z1_bf16_dp4_tied", "megatron:pp=2,distributed_optimizer=0,adam=torch"),
    ],
)
def test_from_deepspeed_and_back(
    name: str, to: str, fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    there = converted(source, tmp_path / "there", to, settings=LLAMA)
    assert_same(source, there, LLAMA)


def test_files_and_arguments(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    there = converted(source, tmp_path / "there", "megatron:pp=2,samples=36", settings=LLAMA)
    assert files(there) == [
        "iter_0000003/mp_rank_00_000/distrib_optim.pt",
        "iter_0000003/mp_rank_00_000/model_optim_rng.pt",
        "iter_0000003/mp_rank_00_001/distrib_optim.pt",
        "iter_0000003/mp_rank_00_001/model_optim_rng.pt",
        "latest_checkpointed_iteration.txt",
    ]
    assert (there / "latest_checkpointed_iteration.txt").read_text() == "3"
    args = arguments(there, "mp_rank_00_001")
    assert args == arguments(there, "mp_rank_00_000")
    told = {key: args[key] for key in ("num_layers", "hidden_size", "ffn_hidden_size")}
    assert told == {"num_layers": 2, "hidden_size": 40, "ffn_hidden_size": 53}
    assert (args["num_attention_heads"], args["num_query_groups"], args["kv_channels"]) == (
        4,
        2,
        10,
    )
    assert (args["pipeline_model_parallel_size"], args["tensor_model_parallel_size"]) == (2, 1)
    assert (args["swiglu"], args["normalization"], args["bf16"]) == (True, "RMSNorm", True)
    assert args["padded_vocab_size"] == 128
    assert not args["untie_embeddings_and_output_weights"]
    assert args["use_distributed_optimizer"]
    assert args["consumed_train_samples"] == 36
    tree = root(there, "mp_rank_00_001")
    assert list(tree) == [
        "args",
        "checkpoint_version",
        "iteration",
        "model",
        "optimizer",
        "opt_param_scheduler",
        "num_floating_point_operations_so_far",
    ]
    assert tree["opt_param_scheduler"]["num_steps"] == 36
    groups = tree["optimizer"]["optimizer"]["param_groups"]
    assert [group["wd_mult"] for group in groups] == [1.0, 0.0]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert list(tree["model"]) == [
        "decoder.layers.0.input_layernorm.weight",
        "decoder.layers.0.self_attention.linear_proj.weight",
        "decoder.layers.0.self_attention.linear_proj._extra_state",
        "decoder.layers.0.self_attention.linear_qkv.weight",
        "decoder.layers.0.self_attention.linear_qkv._extra_state",
        "decoder.layers.0.pre_mlp_layernorm.weight",
        "decoder.layers.0.mlp.linear_fc1.weight",
        "decoder.layers.0.mlp.linear_fc1._extra_state",
        "decoder.layers.0.mlp.linear_fc2.weight",
        "decoder.layers.0.mlp.linear_fc2._extra_state",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
        "output_layer._extra_state",
    ]
