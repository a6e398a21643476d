"""Runs command lines in this process, in a folder that holds the real checkpoints by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Case, Run, Said

from reshard.cli import main
from steady import steady


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("RESHARD_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def run(here: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """A function that runs one command line."""

    def call(*words: str) -> Said:
        capfd.readouterr()
        code = main(words)
        out, err = capfd.readouterr()
        return Said(code, steady(out), steady(err))

    return call


@pytest.fixture
def case(here: Path, fixture_checkpoint: Callable[[str], Path]) -> Case:
    """A function from a case of fixtures/ to the relative path of its checkpoint."""

    def place(name: str) -> str:
        link = here / name
        if not link.exists():
            link.symlink_to(fixture_checkpoint(name) / "ckpt")
        return name

    return place
