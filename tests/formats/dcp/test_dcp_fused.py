"""torchtitan with `fuse_qkv`: weights apart, states of the fused tensor, cut like the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import reshard

Find = Callable[[str], Path]
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def fused(fixture_checkpoint: Find, tmp_path: Path) -> Path:
    """A step of a model with `fuse_qkv`, as torchtitan 0.3.0 saves it."""
    source = fixture_checkpoint("dcp_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "fused", "torchtitan:fused=1,dp=2", settings=HEADS)
    return tmp_path / "fused"


def test_weights_are_apart_and_states_are_of_the_fused_tensor(fused: Path) -> None:
    tensors = reshard.open(fused).tensors
    at = "layers.0.attention.qkv_linear"
    assert {*tensors[f"{at}.wq.weight"].dtypes} == {"param"}
    assert {*tensors[f"{at}.wqkv.weight"].dtypes} == {"exp_avg", "exp_avg_sq", "step"}
    groups = reshard.open(fused).training.param_groups
    listed = [name for group in groups for name in group["params"]]  # type: ignore[attr-defined]
    assert f"{at}.wqkv.weight" in listed
    assert f"{at}.wq.weight" not in listed


@pytest.mark.parametrize(
    ("target", "names"),
    [("torchtitan", None), ("dcp:dp=3", "hf"), ("megatron:tp=2", None), ("deepspeed", "hf")],
)
def test_states_are_cut_like_the_weights(
    fixture_checkpoint: Find, fused: Path, tmp_path: Path, target: str, names: str | None
) -> None:
    source = fixture_checkpoint("dcp_dp2") / "ckpt"
    reshard.convert(fused, tmp_path / "out", target, settings=HEADS, names=names)
    assert reshard.verify(source, tmp_path / "out", settings=HEADS).ok


def test_a_fused_run_goes_on_as_it_is(fused: Path, tmp_path: Path) -> None:
    reshard.convert(fused, tmp_path / "dcp", "dcp:dp=3")
    assert reshard.verify(fused, tmp_path / "dcp").ok
    reshard.convert(fused, tmp_path / "again", "torchtitan:fused=1,dp=3", settings=HEADS)
    assert reshard.verify(fused, tmp_path / "again").ok


def test_a_fused_run_is_compared_with_one_that_is_not(
    fixture_checkpoint: Find, fused: Path, tmp_path: Path
) -> None:
    """In the names that both can have: those of the one whose tensors are the parts."""
    source = fixture_checkpoint("dcp_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "stock", "torchtitan:dp=2", settings=HEADS)
    for one, other in ((fused, tmp_path / "stock"), (tmp_path / "stock", fused)):
        found = reshard.verify(one, other, settings=HEADS)
        assert found.ok
        assert found.tensors == reshard.verify(source, tmp_path / "stock", settings=HEADS).tensors
