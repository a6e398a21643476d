"""A tiny source, the folder that is made of it, and a place to make it in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from folders import tree
from tiny import in_small_pieces, make_tiny

import reshard


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny universal checkpoint; read only."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "made")


@pytest.fixture(scope="session")
def expected(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed conversion of it to universal writes."""
    out = tmp_path_factory.mktemp("expected") / "out"
    reshard.convert(tiny, out, "universal")
    assert reshard.verify(out).ok
    return tree(out)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is a piece of work of its own."""
    in_small_pieces(monkeypatch)


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny source, to be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "copied"))
