"""The precision-aware optimizer: of each master, the file has the half that the weight lacks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from megatron_forge import namespace, save
from megatron_targets import arguments
from test_megatron_errors import message

import reshard
from reshard.storage.inert import Global
from reshard.storage.torch_file import TensorRef, open_torch_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dcp"))

from dcp_forge import Forge

SHAPES = {
    "embedding.word_embeddings.weight": (24, 8),
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (2, 8),
    "decoder.layers.self_attention.linear_proj.weight": (2, 8, 8),
    "decoder.layers.self_attention.linear_qkv.weight": (2, 24, 8),
    "decoder.layers.mlp.linear_fc1.layer_norm_weight": (2, 8),
    "decoder.layers.mlp.linear_fc1.weight": (2, 24, 8),
    "decoder.layers.mlp.linear_fc2.weight": (2, 8, 12),
    "decoder.final_layernorm.weight": (8,),
    "output_layer.weight": (24, 8),
}
ARGS: dict[str, object] = {
    "num_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_query_groups": 2,
    "kv_channels": 4,
    "ffn_hidden_size": 12,
    "swiglu": True,
    "normalization": "RMSNorm",
    "padded_vocab_size": 24,
    "make_vocab_size_divisible_by": 12,
    "untie_embeddings_and_output_weights": True,
    "use_distributed_optimizer": True,
    "use_precision_aware_optimizer": True,
    "bf16": True,
}


def halves(master: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The bf16 weight and the lower half of fp32 masters, as the optimizer keeps them."""
    bits = master.view(np.uint32)
    low = (bits & 0xFFFF).astype(np.uint16).view(np.int16)
    high = (bits >> 16).astype(np.uint16) + (low < 0)
    return high.astype(np.uint16).view(ml_dtypes.bfloat16), low


def masters() -> dict[str, np.ndarray[Any, Any]]:
    """Some of every kind: with halves exactly between two weights, and negative ones."""
    out = {}
    random = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        value = random.standard_normal(shape).astype(np.float32)
        bits = value.reshape(-1).view(np.uint32)
        bits[0] = (bits[0] & 0xFFFF0000) | 0x8000
        bits[1] = (bits[1] & 0xFFFF0000) | 0x18000
        bits[2] &= 0xFFFF0000
        out[name] = value
    return out


def write(root: Path, dtype: str, **args: object) -> Path:
    """A `fully_reshardable` checkpoint with the lower halves in a type."""
    folder = root / "iter_0000004"
    forge = Forge(folder)
    for name, master in masters().items():
        weight, low = halves(master)
        forge.tensor(name, weight)
        forge.tensor(f"optimizer.state.param.{name}", low.astype(dtype))
        for state in ("exp_avg", "exp_avg_sq"):
            forge.tensor(f"optimizer.state.{state}.{name}", np.abs(master))
    forge.write()
    groups = [{"wd_mult": wd, "lr": 0.5, "step": 4, "bias_correction": True} for wd in (1.0, 0.0)]
    common = {
        "args": namespace(**{**ARGS, **args}),
        "checkpoint_version": 3.0,
        "iteration": 4,
        "optimizer": {"optimizer": {"param_groups": groups}},
    }
    save(folder / "common.pt", common)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (root / "latest_checkpointed_iteration.txt").write_text("4")
    return root


def test_weights_between_two_are_no_fault(tmp_path: Path) -> None:
    source = write(tmp_path / "run", "int16")
    for target in ("universal", "megatron-dist"):
        reshard.convert(source, tmp_path / target, target)
        found = reshard.verify(tmp_path / target)
        assert found.ok
        assert not found.warnings


def assert_masters(root: Path, names: str | None = None) -> None:
    """Masters and weights of a checkpoint are those that were."""
    found = reshard.open(root, names=names) if names else reshard.open(root)
    for name, master in masters().items():
        assert np.array_equal(np.asarray(found.read(name, "master")), master), name
        weight = np.asarray(found.read(name)).view(np.uint16)
        assert np.array_equal(weight, halves(master)[0].view(np.uint16)), name


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_masters_are_joined_from_both_halves(dtype: str, tmp_path: Path) -> None:
    source = write(tmp_path / "run", dtype)
    assert_masters(source)
    for target in ("universal", "megatron-dist", "dcp"):
        out = tmp_path / target
        reshard.convert(source, out, target)
        if target == "dcp":
            name = "decoder.layers.mlp.linear_fc2.weight"
            kept = np.asarray(reshard.open(out).read(name, "master"))
            assert np.array_equal(kept, masters()[name])
        else:
            assert_masters(out)


@pytest.mark.parametrize("target", ["megatron:tp=2,dp=2", "megatron:tp=1,pp=2", "megatron-dist"])
def test_the_halves_are_written_for_a_run_that_keeps_them(target: str, tmp_path: Path) -> None:
    source = write(tmp_path / "run", "int16")
    out = tmp_path / "out"
    done = reshard.convert(source, out, target)
    assert not [w for w in done.report.warnings if "master" in w.headline]
    assert reshard.verify(source, out).ok
    reshard.convert(out, tmp_path / "back", "megatron-dist")
    assert_masters(tmp_path / "back")


def flat(out: Path, rank: str = "mp_rank_00") -> np.ndarray[Any, Any]:
    """The masters' buffer of a rank."""
    root = open_torch_file(out / "iter_0000004" / rank / "distrib_optim.pt").root
    assert isinstance(root, dict)
    kinds = Global("torch", "bfloat16"), Global("torch", "float32")
    ref = root[0][kinds]["param"]
    assert isinstance(ref, TensorRef)
    data = Path(ref.file).read_bytes()[ref.byte_offset : ref.byte_offset + 4 * ref.numel]
    return np.frombuffer(data, np.float32)


def test_what_a_buffer_holds_of_them(tmp_path: Path) -> None:
    source = write(tmp_path / "run", "int16")
    reshard.convert(source, tmp_path / "out", "megatron:tp=1")
    last = halves(masters()["output_layer.weight"])[1].astype(np.float32).ravel()
    assert np.array_equal(flat(tmp_path / "out")[: len(last)], last)
    assert arguments(tmp_path / "out")["use_precision_aware_optimizer"] is True


@pytest.mark.parametrize("via", ["universal", "direct"])
def test_whole_masters_where_the_halves_are_not_kept(via: str, tmp_path: Path) -> None:
    source = write(tmp_path / "run", "float32")
    target = "megatron:tp=1"
    if via == "universal":
        reshard.convert(source, tmp_path / "universal", "universal")
        source = tmp_path / "universal"
    else:
        target = "megatron:tp=1,distributed_optimizer=0"
    done = reshard.convert(source, tmp_path / "out", target)
    (warning,) = [w for w in done.report.warnings if "master" in w.headline]
    assert str(warning.headline) == "master weights are written whole, in fp32"
    assert warning.helps == ("resume without `--use-precision-aware-optimizer`",)
    assert arguments(tmp_path / "out")["use_precision_aware_optimizer"] is False
    reshard.convert(tmp_path / "out", tmp_path / "back", "megatron-dist")
    assert_masters(tmp_path / "back")


def test_whole_masters_of_such_a_run_are_read_as_they_are(tmp_path: Path) -> None:
    """`--main-params-dtype fp32` without remainders keeps them whole."""
    source = write(tmp_path / "run", "int16")
    reshard.convert(source, tmp_path / "u", "universal")
    reshard.convert(tmp_path / "u", tmp_path / "whole", "megatron-dist")
    assert_masters(tmp_path / "whole")


def test_other_numbers_than_halves(tmp_path: Path) -> None:
    write(tmp_path, "float32", use_precision_aware_optimizer=False)
    assert message(tmp_path, tmp_path)[0] == (
        "error[shifted-optimizer]: the optimizer's fp32 weights of 9 of 9 tensors do not round to "
        "the weights"
    )


def test_a_half_that_is_none(tmp_path: Path) -> None:
    source = write(tmp_path / "run", "float32")
    name = "decoder.layers.self_attention.linear_qkv.weight"
    low = halves(masters()[name])[1].astype(np.float32)
    (path,) = (source / "iter_0000004").glob("*.distcp")
    data = bytearray(path.read_bytes())
    at = data.find(low.tobytes()) + 4 * 18  # an element that no sample is of
    data[at : at + 4] = np.float32(0.5).tobytes()
    time = path.stat().st_mtime_ns
    path.write_bytes(bytes(data))
    os.utime(path, ns=(time, time))
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.open(source).read(name, "master")
    assert str(caught.value).split("\n") == [
        f"error[bad-remainder]: {path.name} has invalid lower halves of master weights",
        "  = note: 0.5 is not a whole number from -32768 to 32767",
        "  = note: a run with `--use-precision-aware-optimizer` stores the 16 bits of each master "
        "weight that its bf16 weight lacks",
        "  = help: the file is damaged; copy it again, or keep the weights with `--states weights`",
    ]
