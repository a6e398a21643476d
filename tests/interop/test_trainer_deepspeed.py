"""The Trainer with DeepSpeed goes on from its own checkpoint, converted to another size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from framework import HERE, run_framework

import reshard

pytestmark = [pytest.mark.interop, pytest.mark.covers("trainer", "read", "write", "resume")]


@pytest.mark.parametrize(
    ("written", "to", "resumed", "tolerance"),
    [
        ("--zero 1 --dp 2", "deepspeed:zero=2,dp=3", "--zero 2 --dp 3", 2e-5),
        ("--zero 2 --dp 2 --bf16", "deepspeed:zero=1,dp=1", "--zero 1 --dp 1 --bf16", 2e-2),
        ("--zero 3 --dp 2", "deepspeed:zero=3,dp=3", "--zero 3 --dp 3", 2e-5),
    ],
)
def test_the_trainer_goes_on(
    written: str, to: str, resumed: str, tolerance: float, interop_python: Path, tmp_path: Path
) -> None:
    saved, report = tmp_path / "saved", tmp_path / "report.json"
    saved.mkdir()
    command = [str(interop_python), str(HERE / "trainer_deepspeed_run.py")]
    run_framework([*command, "save", str(saved), *written.split()], tmp_path)
    there = tmp_path / "checkpoint-3"
    reshard.convert(saved / "checkpoint-3", there, to)
    resume = [*command, "resume", str(there), str(saved / "truth.pt"), str(report)]
    run_framework([*resume, *resumed.split()], tmp_path)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["different"] == []
    assert found["compared"] > 50
    before, after = found["truth"], found["found"]
    assert set(after["losses"]) == {"4", "5"}
    for step in ("4", "5"):
        assert after["losses"][step] == pytest.approx(before["losses"][step], abs=tolerance)
        assert after["rates"][step] == before["rates"][step]
