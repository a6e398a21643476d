"""FSDP2's state dicts in a file of each rank, as verl keeps them: read, written, and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from framework import HERE, run_framework

import reshard

pytestmark = [pytest.mark.interop, pytest.mark.covers("torch", "read", "write", "resume")]

SCRIPT = str(HERE / "fsdp2_run.py")


def test_fsdp2_loads_what_other_ranks_saved(interop_python: Path, tmp_path: Path) -> None:
    """Rows that no number of ranks divides, tied weights, and two param groups."""
    out = str(tmp_path / "run")
    run_framework([str(interop_python), SCRIPT, out, "2"], tmp_path)
    made = tmp_path / "run" / "ckpt"
    assert reshard.open(made).aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    reshard.convert(made, tmp_path / "other", "verl:dp=3,device=cpu")
    run_framework([str(interop_python), SCRIPT, out, "3", str(tmp_path / "other")], tmp_path)
    reshard.convert(tmp_path / "other", tmp_path / "back", "verl:dp=2,device=cpu")
    assert reshard.verify(made, tmp_path / "back").ok
