"""The real checkpoints under fixtures/ are whole and unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from real_cases import ALL

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
NOT_DATA = ("README.md", "SHA256SUMS")


def test_every_file_has_the_digest_that_sha256sums_lists() -> None:
    listed = {}
    for line in (FIXTURES / "SHA256SUMS").read_text(encoding="ascii").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    found = {}
    for path in FIXTURES.rglob("*"):
        name = path.relative_to(FIXTURES).as_posix()
        if path.is_file() and not name.startswith("make/") and path.name not in NOT_DATA:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == listed


@pytest.mark.parametrize("name", ALL)
def test_a_case_has_a_checkpoint_its_truth_and_what_it_is(
    name: str, fixture_checkpoint: Callable[[str], Path]
) -> None:
    folder = fixture_checkpoint(name)
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    assert case["name"] == name
    if case.get("format", "deepspeed") != "deepspeed":
        assert any((folder / "ckpt").iterdir())
        assert (folder / "truth.safetensors").is_file()
        return
    losses = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    tag = (folder / "ckpt" / "latest").read_text(encoding="ascii")
    assert tag == f"global_step{case['steps']}"
    assert any((folder / "ckpt" / tag).iterdir())
    assert (folder / "truth.safetensors").is_file()
    assert len(losses["trained"]) == case["steps"]
    assert len(losses["next"]) == 3
