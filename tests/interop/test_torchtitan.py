"""The real torchtitan goes on from what reshard made of its own runs, at another size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from framework import HERE, run_framework

import reshard

pytestmark = [
    pytest.mark.interop,
    pytest.mark.covers("torchtitan", "read", "write", "resume"),
]
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("fused", "ways", "sizes"),
    [
        (0, ["torchtitan:dp=3"], "--dp 1 --tp 2"),
        (1, ["torchtitan:fused=1,dp=3"], "--dp 1 --tp 2"),
        (1, ["torchtitan", "torchtitan:fused=1"], "--dp 2 --tp 1"),
    ],
)
def test_torchtitan_goes_on(
    fused: int, ways: list[str], sizes: str, interop_python: Path, tmp_path: Path
) -> None:
    saved, report = tmp_path / "saved", tmp_path / "report.json"
    saved.mkdir()
    command = [str(interop_python), str(HERE / "titan_run.py")]
    told = ["--fused", str(fused)]
    run_framework([*command, "save", str(saved), "--dp", "2", *told], tmp_path, "torchtitan")
    source = saved / "checkpoint" / "step-3"
    for number, to in enumerate(ways):
        there = tmp_path / f"there{number}"
        reshard.convert(source, there, to, settings=HEADS)
        source = there
    resume = [*command, "resume", str(source), str(saved / "truth.pt"), str(report)]
    run_framework([*resume, *told, *sizes.split()], tmp_path, "torchtitan")
    found = json.loads(report.read_text(encoding="utf-8"))
    assert (found["now"], found["later"]) == ([], [])
    assert found["compared"] > 60
