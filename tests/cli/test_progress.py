"""Progress: a bar on a terminal, a line now and then elsewhere, and all bytes in the end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.cli.progress import EVERY_SECONDS, Lines
from reshard.engine.progress import Progress


def test_a_line_now_and_then() -> None:
    now = [0.0]
    said: list[str] = []
    lines = Lines("convert", said.append, lambda: now[0])
    for second in range(int(2.5 * EVERY_SECONDS)):
        now[0] = float(second)
        lines(Progress(second * 1_000_000, 100_000_000, "x"))
    assert said == [
        "convert: 20.0 MB of 100.0 MB (20 %), 1.0 MB/s, 1 min 20 s left",
        "convert: 40.0 MB of 100.0 MB (40 %), 1.0 MB/s, 1 min 0 s left",
    ]


def test_each_part_counts_for_itself() -> None:
    now = [0.0]
    said: list[str] = []
    lines = Lines("roundtrip", said.append, lambda: now[0])
    now[0] = 100.0
    lines(Progress(0, 0, "", "via universal"))
    now[0] = 130.0
    lines(Progress(30_000, 40_000, "", "via universal"))
    assert said == [
        "via universal: 0 B of 0 B",
        "via universal: 30.0 kB of 40.0 kB (75 %), 1.0 kB/s, 10.0 s left",
    ]


@pytest.mark.parametrize("name", ["verify", "compare", "diff", "copies", "roundtrip", "check"])
def test_everything_that_reads_says_how_far_it_is(
    name: str, fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt"
    calls: dict[str, Callable[[Callable[[Progress], None]], object]] = {
        "verify": lambda tell: reshard.verify(source, on_progress=tell),
        "compare": lambda tell: reshard.verify(source, source, on_progress=tell),
        "diff": lambda tell: reshard.diff(source, source, on_progress=tell),
        "copies": lambda tell: reshard.diff(source, on_progress=tell),
        "roundtrip": lambda tell: reshard.roundtrip(source, ["universal"], on_progress=tell),
        "check": lambda tell: reshard.inspect(source, check=True, on_progress=tell),
    }
    told: list[Progress] = []
    calls[name](told.append)
    parts: dict[tuple[str, int], list[int]] = {}
    for item in told:
        assert 0 <= item.nbytes_done <= item.nbytes_total
        parts.setdefault((item.title, item.nbytes_total), []).append(item.nbytes_done)
    for done in parts.values():
        assert done == sorted(done)
    (_, total), last = [*parts.items()][-1]
    assert last[-1] > 0.8 * total > 0
    if name == "roundtrip":
        assert ("via universal", total) in parts


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "no-colour"])
def test_a_bar_on_a_terminal(
    colour: bool, fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    variables.pop("NO_COLOR", None)
    if not colour:
        variables["NO_COLOR"] = "1"
    shown, end = pty.openpty()
    words = [sys.executable, "-m", "reshard", "verify", str(source)]
    with subprocess.Popen(words, stderr=end, stdout=subprocess.PIPE, env=variables) as process:
        os.close(end)
        text = b""
        while True:
            try:
                more = os.read(shown, 4096)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            text += more
        assert process.wait() == 0
    os.close(shown)
    assert b"verify" in text
    assert "━".encode() in text
    assert (b"\x1b[38;" in text or b"\x1b[3" in text) == colour
