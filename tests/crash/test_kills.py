"""`kill -9` at every call of the file system: nothing is lost, nothing looks whole that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard

DRIVER = Path(__file__).with_name("kill_driver.py")

Tell = Callable[[str, str], None]


def kill(folder: Path, tell: Tell, source: Path, to: str, step: int = 1, **more: object) -> None:
    """Run the driver, and tell what it counted."""
    folder.mkdir()
    threads, previous = more.get("threads", 1), more.get("previous")
    how = str(more.get("how", "kill"))
    words = [*(source, folder, to, step, threads, how), *([previous] if previous else [])]
    done = subprocess.run(
        [sys.executable, str(DRIVER), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    replaced = ", replacing another" if previous else ""
    several = f", {threads} threads" if threads != 1 else ""
    lost = f"{counts['lost bytes']} unsynced bytes made zero, " if how == "power" else ""
    every = "each" if step == 1 else f"one in {step}"
    went_on, complete = counts["gone on from"], counts.get("complete", 0)
    tell(
        f"{how} matrix, {to}{replaced}{several}",
        f"{counts['calls']} calls, killed at {every} ({counts['killed']} kills): "
        f"{lost}{went_on} gone on from, {complete} were complete; 0 losses",
    )
    assert counts["killed"] >= 20
    assert went_on >= 3
    assert how == "kill" or counts["lost bytes"] > 1000


@pytest.mark.slow
def test_universal(tiny: Path, tmp_path: Path, tell: Tell) -> None:
    kill(tmp_path / "work", tell, tiny, "universal")


@pytest.mark.slow
def test_universal_in_place_of_another(tiny: Path, tmp_path: Path, tell: Tell) -> None:
    reshard.convert(tiny, tmp_path / "previous", "universal", states="weights")
    kill(tmp_path / "work", tell, tiny, "universal", 3, previous=tmp_path / "previous")


@pytest.mark.slow
def test_deepspeed_universal_in_place_of_another(tiny: Path, tmp_path: Path, tell: Tell) -> None:
    reshard.convert(tiny, tmp_path / "previous", "deepspeed-universal:tag=other")
    kill(tmp_path / "work", tell, tiny, "deepspeed-universal", 9, previous=tmp_path / "previous")


@pytest.mark.slow
def test_a_distributed_checkpoint_in_place_of_another(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, tell: Tell
) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    reshard.convert(source, tmp_path / "previous", "dcp:dp=2")
    kill(tmp_path / "work", tell, source, "dcp:dp=1", 30, previous=tmp_path / "previous")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "to", "step"),
    [
        ("z1_bf16_dp4_tied", "deepspeed:zero=1,dp=2", 10),
        ("z1_bf16_dp4_tied", "dcp:dp=2", 48),
        ("z1_bf16_dp4_tied", "hf", 5),
        ("megatron_untied_tp2_pp2", "megatron:tp=1,pp=2", 12),
    ],
)
def test_other_targets(
    fixture_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    tell: Tell,
    case: str,
    to: str,
    step: int,
) -> None:
    kill(tmp_path / "work", tell, fixture_checkpoint(case) / "ckpt", to, step)


@pytest.mark.slow
def test_the_machine_goes_down(tiny: Path, tmp_path: Path, tell: Tell) -> None:
    reshard.convert(tiny, tmp_path / "previous", "universal", states="weights")
    kill(tmp_path / "work", tell, tiny, "universal", 3, how="power", previous=tmp_path / "previous")


@pytest.mark.slow
def test_several_threads(tiny: Path, tmp_path: Path, tell: Tell) -> None:
    kill(tmp_path / "work", tell, tiny, "universal", 4, threads=3)
