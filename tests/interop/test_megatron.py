"""The real Megatron-core resumes from what reshard writes, at another layout, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from framework import HERE, run_framework

from reshard import api

pytestmark = pytest.mark.interop

Fixture = Callable[[str], Path]
RELEASES = [
    pytest.param("", id="0.16", marks=pytest.mark.covers("megatron-core", "write", "resume")),
    pytest.param(
        "megatron-core-0.19",
        id="0.19",
        marks=pytest.mark.covers("megatron-core-0.19", "write", "resume"),
    ),
]


def _convert(source: Path, target: Path, to: str) -> None:
    code = "from reshard.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "convert", str(source), str(target), "--to", to]
    command += ["--set", "vocab_size=40"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("name", "to", "run", "tolerance"),
    [
        ("megatron_dist_untied", "megatron:tp=2,pp=2", "tp=2 pp=2 etp=1", None),
        ("megatron_lnbias_tp2", "megatron:pp=2,adam=torch", "tp=1 etp=1 pp=2", 2e-5),
        ("megatron_untied_tp2_pp2", "megatron-dist", "tp=1 etp=1 pp=1", 2e-5),
        ("megatron_do_dp2_buckets", "megatron:pp=2", "pp=2 dp=1 bucket_size=0", 2e-2),
        ("megatron_do_dp2_buckets", "megatron-dist", "tp=2 dp=1 bucket_size=0", None),
        ("megatron_moe_ep2", "megatron:ep=4", "ep=4 dp=4", 2e-5),
        ("megatron_moe_ep2", "megatron-dist:ep=1", "pp=2 ep=1 dp=1", 2e-5),
    ],
)
def test_megatron_resumes(
    name: str,
    to: str,
    run: str,
    tolerance: float | None,
    release: str,
    fixture_checkpoint: Fixture,
    interop_python: Path,
    tmp_path: Path,
) -> None:
    case = fixture_checkpoint(name)
    there, saved, report = (tmp_path / part for part in ("there", "saved", "report.json"))
    _convert(case / "ckpt", there, to)
    command = [str(interop_python), str(HERE / "megatron_resume.py")]
    command += [str(case), str(there), str(report), str(saved)]
    command += ["--form", "torch_dist" if to.startswith("megatron-dist") else "torch"]
    for item in run.split():
        axis, _, size = item.partition("=")
        command += [f"--{axis}", size]
    run_framework(command, tmp_path, release)
    found = api.verify(
        case / "ckpt", saved, settings={"vocab_size": 38}
    )  # of weights and optimizer states
    assert found.ok, found.to_text()
    # Rows that pad the vocabulary take part in the loss: as many as the original run had are
    # there where tp is 1.
    if tolerance is not None:
        losses = json.loads(report.read_text(encoding="utf-8"))["losses"]
        expected = json.loads((case / "losses.json").read_text(encoding="utf-8"))["next"]
        assert losses == pytest.approx(expected, abs=tolerance)
