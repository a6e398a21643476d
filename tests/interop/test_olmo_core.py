"""The real OLMo-core goes on from what reshard made of its own runs, at another size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from framework import HERE, run_framework

import reshard

pytestmark = [
    pytest.mark.interop,
    pytest.mark.covers("olmo-core", "read", "write", "resume"),
]


@pytest.mark.parametrize(
    ("written", "ways", "resumed"),
    [
        ("--dp fsdp", ["olmo-core:dp=3"], "--dp fsdp --world 3"),
        ("--dp fsdp --flat 0", ["universal", "olmo-core"], "--dp ddp"),
    ],
)
def test_olmo_core_goes_on(
    written: str, ways: list[str], resumed: str, interop_python: Path, tmp_path: Path
) -> None:
    saved, report = tmp_path / "saved", tmp_path / "report.json"
    saved.mkdir()
    command = [str(interop_python), str(HERE / "olmo_run.py")]
    run_framework([*command, "save", str(saved), *written.split()], tmp_path, "olmo-core")
    source = saved / "step3"
    for number, to in enumerate(ways):
        there = tmp_path / f"there{number}"
        reshard.convert(source, there, to)
        source = there
    resume = [*command, "resume", str(source), str(saved / "truth.pt"), str(report)]
    run_framework([*resume, *resumed.split()], tmp_path, "olmo-core")
    found = json.loads(report.read_text(encoding="utf-8"))
    assert (found["now"], found["later"]) == ([], [])
    assert found["compared"] > 60
