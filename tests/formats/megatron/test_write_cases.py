"""Real Megatron checkpoints, written again: at another layout equal, at their own the same tree."""

# ruff: noqa: E501

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron_targets import LLAMA, arguments, assert_same, converted, files

from reshard import api
from reshard.errors import ReshardError
from reshard.storage.kept import encode
from reshard.storage.torch_file import TensorRef, open_torch_file, read_small

TOLD = {"rms_norm_eps": 1e-5, "rope_theta": 10000}
"""What the arguments of the smallest cases do not say, and a `config.json` must."""

Fixture = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("megatron_dist_untied", "megatron:tp=2,pp=2"),
        ("megatron_dist_layers", "megatron-dist"),
        ("megatron_dist_reshardable_tp2_dp2", "megatron:pp=2"),
        ("megatron_dist_dp_reshardable_dp2", "megatron-dist"),
        ("megatron_dist_dp_reshardable_dp2", "megatron:distributed_optimizer=0"),
        ("megatron_do_dp2_buckets", "megatron:tp=2,pp=2,dp=3"),
        ("megatron_lnbias_tp2", "megatron:pp=2"),
        ("megatron_lnbias_tp2", "megatron-dist"),
        ("megatron_tied_pp2", "megatron:tp=2"),
        ("megatron_tied_pp2", "megatron-dist"),
        ("megatron_untied_pp2_uneven", "megatron:pp=3"),
        ("megatron_untied_pp2_vpp2", "megatron:tp=2,pp=2"),
        ("megatron_untied_tp2_pp2", "megatron:vpp=1"),
        ("megatron_moe_ep2", "megatron:pp=2"),
        ("megatron_moe_ep2", "megatron-dist:ep=1"),
        ("megatron_moe_ep2", "megatron:ep=4,distributed_optimizer=1"),
        ("megatron_dist_moe_ep2", "megatron:ep=2,pp=2"),
    ],
)
def test_at_another_layout(name: str, to: str, fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    there = converted(source, tmp_path / "there", to)
    states = "all"
    if "distributed_optimizer=1" in to:
        states = "param,exp_avg,exp_avg_sq,step"  # its masters are the fp32 weights once more
    found = api.verify(source, there, states=states)
    assert found.ok, found.to_text()
    assert found.tensors > 0


@pytest.mark.parametrize(
    ("name", "to", "places"),
    [
        ("megatron_untied_tp2_pp2", "megatron:tp=2,pp=2", ()),
        ("megatron_untied_pp2_vpp2", "megatron:pp=2,vpp=2", ()),
        ("megatron_untied_pp2_uneven", "megatron:pp=2", ("layer=pp:1,2",)),
        ("megatron_do_dp2_buckets", "megatron:dp=2", ()),
        ("megatron_lnbias_tp2", "megatron:tp=2", ()),
        ("megatron_moe_ep2", "megatron:ep=2", ()),
        ("megatron_tied_pp2", "megatron:pp=2", ()),
        ("megatron_dist_moe_ep2", "megatron-dist", ()),
        ("megatron_dist_reshardable_tp2_dp2", "megatron-dist", ()),
    ],
)
def test_at_its_own_layout(
    name: str, to: str, places: tuple[str, ...], fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    # With the rows that pad the vocabulary, which belong to no token.
    padded = {"vocab_size": 48 if "tp2" in name else 40}
    there = converted(source, tmp_path / "there", to, places=places, settings=padded)
    trees = [file for file in files(source) if file.endswith(".pt")]
    assert [file for file in files(there) if file.endswith(".pt")] == trees
    for file in trees:
        before, after = _tree(source / file), _tree(there / file)
        if "args" in after:
            args = after["args"]["$record"]["state"][0]
            del args["ckpt_format"]
            if "vpp" in name:
                assert args.pop("num_layers_per_virtual_pipeline_stage") == 1
                assert args.pop("num_virtual_stages_per_pipeline_rank") == 2
        assert after == before


def _tree(path: Path) -> Any:
    def tensor(ref: TensorRef) -> object:
        return [str(ref.dtype), list(ref.shape), read_small(ref).hex()]

    return encode(open_torch_file(path).root, tensor)


def test_uneven_stages_are_in_the_arguments(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("megatron_untied_pp2_vpp2") / "ckpt"

    def said(number: int, places: str, to: str) -> dict[str, object]:
        there = converted(source, tmp_path / f"{number}", to, places=(places,))
        assert_same(source, there)
        args = arguments(there, "mp_rank_00_000")
        return {key: value for key, value in args.items() if "pipeline" in key and value}

    assert said(1, "layer=pp:1,2,1", "megatron:pp=3") == {
        "pipeline_model_parallel_size": 3,
        "decoder_first_pipeline_num_layers": 1,
        "decoder_last_pipeline_num_layers": 1,
    }
    assert said(2, "layer=pp:2,1,1", "megatron:pp=3") == {
        "pipeline_model_parallel_size": 3,
        "decoder_first_pipeline_num_layers": 2,
    }
    assert said(3, "layer=vpp+pp:1,0,1,2", "megatron:pp=2,vpp=2") == {
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "pipeline_model_parallel_layout": "Et||t|ttL",
    }


def test_weights_alone_are_a_release(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("megatron_dist_untied") / "ckpt"
    whole = converted(source, tmp_path / "hf", "hf", states="weights", settings=TOLD)
    there = converted(whole, tmp_path / "there", "megatron:tp=2,pp=2")
    assert (there / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert files(there)[0] == "latest_checkpointed_iteration.txt"
    assert files(there)[1:3] == [
        "release/config.json",
        "release/mp_rank_00_000/model_optim_rng.pt",
    ]
    assert_same(whole, there)


def test_experts_that_the_ranks_do_not_divide(fixture_checkpoint: Fixture) -> None:
    source = fixture_checkpoint("megatron_moe_ep2") / "ckpt"
    with pytest.raises(ReshardError) as caught:
        api.plan(source, "megatron:ep=3")
    assert (
        str(caught.value)
        == """\
error[uneven-target]: axis `e` of `decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight` cannot be cut over ep=3
  = note: 4 / 3 leaves remainder 1
  = note: the source cuts it into 4
  = help: choose a size of ep that divides 4"""
    )


@pytest.mark.parametrize("name", ["z1_fp32_dp2_untied", "z1_bf16_dp4_tied"])
def test_from_deepspeed_and_back(name: str, fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    there = converted(source, tmp_path / "there", "megatron:pp=2", settings=LLAMA)
    back = converted(there, tmp_path / "back", "deepspeed:zero=1,dp=2", names="hf")
    found = api.verify(source, back)
    assert found.ok, found.to_text()


def test_from_hugging_face_and_back(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("megatron_dist_untied") / "ckpt"
    model = converted(source, tmp_path / "model", "hf", states="weights", settings=TOLD)
    there = converted(model, tmp_path / "there", "megatron:tp=2,pp=2")
    back = converted(there, tmp_path / "back", "hf", settings=TOLD)
    (name,) = model.glob("*.safetensors")
    assert (back / name.name).read_bytes() == name.read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model, back))
    assert after == before
