"""`torch_dist` folders hold the source, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from megatron_targets import LLAMA, assert_same, converted, files

from reshard.storage.dcp_metadata import read_metadata
from reshard.storage.torch_file import open_torch_file

Fixture = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("z1_fp32_dp2_untied", "megatron-dist:adam=fused"),
        ("z1_bf16_dp4_tied", "megatron-dist"),
        ("z1_bf16_dp4_tied", "megatron-dist:distributed_optimizer=0,adam=torch"),
    ],
)
def test_from_deepspeed(name: str, to: str, fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    there = converted(source, tmp_path / "there", to, settings=LLAMA)
    assert_same(source, there, LLAMA)
    ranks = converted(there, tmp_path / "ranks", "megatron:pp=2")
    assert_same(there, ranks)


def test_files_and_keys(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    there = converted(source, tmp_path / "there", "megatron-dist:tp=2", settings=LLAMA)
    assert files(there) == [
        "iter_0000003/.metadata",
        "iter_0000003/__0_0.distcp",
        "iter_0000003/common.pt",
        "iter_0000003/metadata.json",
        "latest_checkpointed_iteration.txt",
    ]
    folder = there / "iter_0000003"
    assert json.loads((folder / "metadata.json").read_text()) == {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    common = open_torch_file(folder / "common.pt").root
    assert isinstance(common, dict)
    assert common["content_metadata"] == {
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "distrib_optim_sharding_type": "fully_reshardable",
    }
    assert list(common["optimizer"]) == ["optimizer", "param_state_sharding_type"]
    args = common["args"].attributes
    assert (args["tensor_model_parallel_size"], args["no_save_rng"]) == (2, True)
    assert "padded_vocab_size" not in args
    metadata = read_metadata(folder)
    shapes = {item.name: item.shape for item in metadata.tensors}
    key = "decoder.layers.mlp.linear_fc1.weight"
    assert shapes[key] == (2, 106, 40)
    assert {name for name in shapes if name.endswith(key)} == {
        key,
        f"optimizer.state.param.{key}",
        f"optimizer.state.exp_avg.{key}",
        f"optimizer.state.exp_avg_sq.{key}",
    }
    assert "output_layer.weight" not in shapes
    objects = [item.name for item in metadata.objects]
    assert [name for name in objects if ".linear_fc1." in name] == [
        "decoder.layers.mlp.linear_fc1._extra_state/shard_0_2",
        "decoder.layers.mlp.linear_fc1._extra_state/shard_1_2",
    ]
