"""torch's own loader takes what reshard wrote, at other sizes and cuts, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from framework import HERE, run_framework

import reshard

pytestmark = pytest.mark.interop

Find = Callable[[str], Path]
Load = Callable[..., dict[str, Any]]


@pytest.fixture
def load(interop_python: Path, tmp_path: Path) -> Load:
    """A function that lets torch load a folder into a cut model: what it found."""

    def call(folder: Path, case: Path, **job: Any) -> dict[str, Any]:
        told = {"world": 2, "shard": "fsdp2", "names": "hf", "dtype": "float32", "form": "dcp"}
        told |= {"flat": False, "folder": str(folder), "truth": str(case / "truth.safetensors")}
        (tmp_path / "job.json").write_text(json.dumps(told | job), encoding="utf-8")
        report = tmp_path / "loaded.json"
        report.unlink(missing_ok=True)
        script = [str(interop_python), str(HERE / "dcp_load.py")]
        run_framework([*script, str(tmp_path / "job.json"), str(report)], tmp_path)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found

    return call


def _equal(found: dict[str, Any], count: int) -> None:
    assert (found["equal"], found["different"]) == (count, [])


def test_fsdp2_at_another_size(fixture_checkpoint: Find, load: Load, tmp_path: Path) -> None:
    case = fixture_checkpoint("dcp_dp2")
    reshard.convert(case / "ckpt", tmp_path / "out", "dcp:dp=2")
    found = load(tmp_path / "out", case, world=3)
    _equal(found, 84)
    assert [group["weight_decay"] for group in found["groups"]] == [0.1, 0.0]
    assert all(group["lr"] == 0.01 and group["betas"] == [0.9, 0.95] for group in found["groups"])


def test_a_grid_of_four_ranks_from_a_universal_checkpoint(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    case = fixture_checkpoint("dcp_tp2_dp2")
    reshard.convert(case / "ckpt", tmp_path / "universal", "universal")
    reshard.convert(tmp_path / "universal", tmp_path / "out", "dcp:dp=3")
    _equal(load(tmp_path / "out", case, world=4, shard="tp+fsdp2"), 84)
