"""What the real Megatron-core writes now, at meshes that no fixture has, is what it held."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from framework import HERE, run_framework
from safetensors.numpy import load_file

import reshard

pytestmark = pytest.mark.interop

MAKE = HERE.parents[1] / "fixtures" / "make" / "make_megatron.py"


@pytest.mark.parametrize(
    ("like", "changes"),
    [
        (
            "megatron_dist_dp_reshardable_dp2",
            {"tp": 2, "pp": 2, "etp": 2, "dp": 1, "vocab_stated": False},
        ),
        ("megatron_lnbias_tp2", {"tp": 1, "etp": 1, "pp": 2, "precision": "bf16"}),
    ],
)
def test_a_case_made_now(
    like: str,
    changes: dict[str, Any],
    fixture_checkpoint: Callable[[str], Path],
    interop_python: Path,
    tmp_path: Path,
) -> None:
    described = json.loads((fixture_checkpoint(like) / "case.json").read_text(encoding="utf-8"))
    case = tmp_path / "case.json"
    case.write_text(json.dumps(described | changes | {"name": "made"}), encoding="utf-8")
    run_framework([str(interop_python), str(MAKE), str(case), "made"], tmp_path)
    reshard.convert(tmp_path / "made" / "ckpt", tmp_path / "out", "universal", names="megatron")
    found = reshard.open(tmp_path / "out")
    truth = load_file(tmp_path / "made" / "truth.safetensors")
    assert len(truth) > 40
    for key, value in truth.items():
        name, _, state = key.rpartition("/")
        rows = min(len(value), found.tensors[name].shape[0])  # padding depends on tp
        kept = found.read(name, state)
        assert kept.dtype.itemsize == value.dtype.itemsize
        assert kept[:rows].tobytes() == value[:rows].tobytes(), key
