"""Nothing of a real checkpoint is dropped in silence: every file and every key is accounted for."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from accounting import unaccounted
from real_cases import READABLE
from reshard.errors import ReshardError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
"""More real checkpoints, where they lie beside the checkout."""
NAMES = {"ckpt", "state", "state_nodcp", "consolidated", "sharded_only"}


@pytest.mark.parametrize("name", READABLE)
def test_every_fixture(name: str, fixture_checkpoint: Callable[[str], Path]) -> None:
    assert unaccounted(fixture_checkpoint(name) / "ckpt") == []


@pytest.mark.slow
def test_every_shared_checkpoint(tmp_path: Path, tell: Callable[[str, str], None]) -> None:
    read, refused, faults = 0, 0, {}
    for archive in sorted(SHARED.glob("*.tar.xz")):
        with tarfile.open(archive) as file:
            file.extractall(tmp_path, filter="data")
    for folder in _checkpoints(tmp_path):
        try:
            found = unaccounted(folder)
        except ReshardError:
            refused += 1
            continue
        read += 1
        if found:
            faults[str(folder.relative_to(tmp_path))] = found[:5]
    tell("accounting", f"{read} shared checkpoints accounted for, {refused} refused")
    assert faults == {}


def _checkpoints(root: Path) -> list[Path]:
    tracked = {path.parent for path in root.rglob("latest_checkpointed_iteration.txt")}
    named = {path for name in NAMES for path in root.rglob(name) if path.is_dir()}
    steps = {path.parent for path in root.rglob("step-*") if path.is_dir()}
    return sorted(tracked | named | steps)
