"""`--dtype`: rounded once, from the best that is stored, and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import reshard
import safetensors_files

Fixture = Callable[[str], Path]
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("name", ["z3_fp32_dp2_untied", "z3_bf16_dp3_untied", "z1_bf16_dp4_tied"])
def test_weights_are_rounded_from_the_master_weights(
    name: str, fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = reshard.open(fixture_checkpoint(name) / "ckpt")
    best = source.read(NAME, "master" if "master" in source.states else "param")
    reshard.convert(source.path, tmp_path / "out", "universal", dtype="bf16,exp_avg=fp16")
    out = reshard.open(tmp_path / "out")
    rounded = best.astype(np.float32).astype(ml_dtypes.bfloat16)
    assert out.read(NAME).view(np.uint16).tolist() == rounded.view(np.uint16).tolist()
    small = source.read(NAME, "exp_avg").astype(np.float16)
    assert out.read(NAME, "exp_avg").tobytes() == small.tobytes()
    assert out.read(NAME, "exp_avg_sq").tobytes() == source.read(NAME, "exp_avg_sq").tobytes()


def test_what_was_rounded_is_recorded(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    reshard.convert(source, tmp_path / "out", "universal", dtype="fp16")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["provenance"][-1]["casts"] == {"param": "F32 to F16"}
    assert reshard.verify(tmp_path / "out").ok


def test_numbers_and_buffers_stay(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_frozen") / "ckpt"
    reshard.convert(source, tmp_path / "out", "universal", dtype="param=bf16,step=bf16")
    before, after = reshard.open(source), reshard.open(tmp_path / "out")
    for name, info in before.tensors.items():
        if "step" in info.dtypes:
            assert after.tensors[name].dtypes["step"] == info.dtypes["step"]


def test_infinities_are_refused_where_a_type_has_none(tmp_path: Path) -> None:
    data = np.array([1, np.inf], np.float32).tobytes()
    source = safetensors_files.save(tmp_path / "s" / "model.safetensors", {"w": ("F32", [2], data)})
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "hf", names="source", dtype="fp8_e4m3")
    assert str(caught.value) == (
        "error[cast-refused]: `w` (param) cannot be converted from F32 to F8_E4M3\n"
        "  = note: F8_E4M3 has no infinity: inf (0x7f800000)\n"
        "  = note: every rank in `model.safetensors`\n"
        "  = help: keep F32 for it, or choose a type that can represent its values"
    )
    assert not (tmp_path / "out").exists()
    reshard.convert(source, tmp_path / "out", "hf", names="source", dtype="fp8_e5m2")
    assert reshard.open(tmp_path / "out").read("w").astype(np.float32).tolist() == [1, np.inf]
