"""Ctrl-C says what is left and how to go on, whenever it comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import shim
from folders import attempt, tree

from reshard.cli import main

CODE = """
import os, signal, sys
import reshard.engine.units as units
from reshard.cli import main
units.MAX_TOGETHER = 1
from reshard.store.output import OutputFolder
real = OutputFolder.note
count = [0]
def noted(self, records, nbytes):
    real(self, records, nbytes)
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGINT)
OutputFolder.note = noted
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("threads", ["1", "3"])
def test_while_tensors_are_written(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, threads: str
) -> None:
    words = ["convert", str(tiny), "out", "--to", "universal", "--threads", threads]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    first, *rest = done.stderr.split("\n")
    pieces = int(first.removeprefix("interrupted; ").partition(" B ")[0]) // 40
    assert first == (
        f"interrupted; {40 * pieces} B of 1.3 kB are written and kept in `.out.reshard-partial`"
    )
    assert rest == ["run the same command again to continue from there, or remove that folder", ""]
    assert os.listdir(tmp_path) == [".out.reshard-partial"]
    resumed, _ = attempt(tiny, tmp_path / "out", "universal")
    assert resumed is not None
    # A thread may finish a piece while another one ends the run.
    assert pieces >= 3
    assert resumed.resumed.arrays == pieces or (threads == "3" and resumed.resumed.arrays > pieces)
    assert tree(tmp_path / "out") == expected


def test_as_json(
    tiny: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with shim.counted(8, shim.interrupts, ("pwrite",)):
        words = ["convert", str(tiny), "out", "--to", "universal", "--json", "--threads", "1"]
        assert main(words) == 130
    out, err = capfd.readouterr()
    assert err.startswith("interrupted; 80 B of 1.3 kB are written and kept in ")
    assert json.loads(out) == {
        "schema": 1,
        "ok": False,
        "error": {
            "exit_code": 130,
            "diagnostics": [
                {
                    "level": "error",
                    "code": "interrupted",
                    "headline": "interrupted",
                    "notes": [
                        "80 B of 1.3 kB are written and kept in `.out.reshard-partial`",
                    ],
                    "help": [
                        "run the same command again to continue from there, or remove that folder"
                    ],
                }
            ],
        },
    }


def test_while_it_is_put_in_place(tiny: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Before the rename everything is kept; after it everything is there."""
    with shim.counted() as counter:
        attempt(tiny, tmp_path / "count", "universal")
    renames = counter.seen.count("rename")
    with shim.counted(renames, shim.interrupts, ("rename",)):
        _, error = attempt(tiny, tmp_path / "out", "universal")
    assert str(error) == "interrupted; `out` is already complete"
    assert tree(tmp_path / "out") == expected
    fsyncs = counter.seen.count("fsync")
    with shim.counted(fsyncs - 2, shim.interrupts, ("fsync",)):
        _, error = attempt(tiny, tmp_path / "later", "universal")
    assert str(error) == (
        "interrupted; 240 B of 1.3 kB are written and kept in `.later.reshard-partial`\n"
        "run the same command again to continue from there, or remove that folder"
    )
    done, _ = attempt(tiny, tmp_path / "later", "universal")
    assert done is not None
    assert done.resumed.arrays == 6
    assert sorted(os.listdir(tmp_path)) == ["count", "later", "out"]


def test_while_what_was_left_is_proved(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with shim.counted(8, shim.interrupts, ("pwrite",)):
        attempt(tiny, tmp_path / "out", "universal")

    def proving(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reshard.store.output.OutputFolder.find_kept", proving)
        _, error = attempt(tiny, tmp_path / "out", "universal")
    assert str(error) == (
        "interrupted; the partial output of an earlier run is kept in `.out.reshard-partial`\n"
        "run the same command again to continue from there, or remove that folder"
    )
    done, _ = attempt(tiny, tmp_path / "out", "universal")
    assert done is not None
    assert done.resumed.arrays == 2
    assert tree(tmp_path / "out") == expected
