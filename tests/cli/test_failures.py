"""What cannot be blamed on the user's input: bugs, interrupts, and readers that leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Case, Run

from reshard import api


def test_a_bug_is_one_clear_message(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("tp")

    monkeypatch.setattr(api, "inspect", broken)
    said = run("inspect", "somewhere")
    assert said.code == 1
    assert said.out == ""
    place, line = said.err.split("\n")[1], broken.__code__.co_firstlineno + 1
    assert place == f"  = note: at test_failures.py:{line}, in `broken`"
    assert said.err == (
        "error[bug]: this is a bug in reshard: KeyError: 'tp'\n"
        f"{place}\n"
        "  = note: no output was left behind\n"
        "  = help: run it again with RESHARD_DEBUG=1 for the traceback, and report that, please\n"
    )


def test_a_bug_has_its_traceback_when_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("tp")

    monkeypatch.setattr(api, "inspect", broken)
    monkeypatch.setenv("RESHARD_DEBUG", "1")
    with pytest.raises(KeyError):
        run("inspect", "somewhere")


def test_an_interrupt_of_a_plan_leaves_nothing(
    run: Run, case: Case, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    source = case("z1_bf16_dp4_tied")
    monkeypatch.setattr("reshard.api.converting.build_plan", interrupt)
    said = run("convert", source, "out", "--to", "universal")
    assert (said.code, said.out) == (130, "")
    assert said.err == "interrupted; nothing was left behind\n"
    assert [path.name for path in here.iterdir()] == [source]


def test_a_reader_that_leaves_is_no_failure(tmp_path: Path) -> None:
    code = "import sys; from reshard.cli import main; sys.exit(main(['explain']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
