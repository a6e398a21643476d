"""What was found is told by the exit code, whoever reads the rest; reports replace only reports."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Run

import safetensors_files

MAIN = "import sys; from reshard.cli import main; sys.exit(main(sys.argv[1:]))"
FULL = "standard output cannot be written: No space left on device\n"


@pytest.fixture
def apart(tmp_path: Path) -> tuple[str, str]:
    """Two checkpoints that differ."""
    for name, data in (("a", b"12345678"), ("b", b"12345679")):
        safetensors_files.save(tmp_path / name / "model.safetensors", {"w": ("F32", [2], data)})
    return str(tmp_path / "a"), str(tmp_path / "b")


def ended(*words: str, redirect: str) -> tuple[int, str]:
    """The exit code of a command whose streams the shell redirects, and what it says elsewhere."""
    line = f'exec "$0" -c "$1" "${{@:2}}" {redirect}'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, MAIN, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr + done.stdout


@pytest.mark.parametrize("command", [("verify",), ("diff",), ("verify", "--json")])
def test_a_difference_is_told_to_nobody(command: tuple[str, ...], apart: tuple[str, str]) -> None:
    words = (*command, *apart)
    assert ended(*words, redirect=">&-") == (6, "")
    assert ended(*words, redirect="> /dev/full") == (6, FULL)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *words], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (6, b"")


def test_a_conversion_that_nobody_hears_of(apart: tuple[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert ended("convert", apart[0], out, "--to", "universal", redirect="> /dev/full") == (0, FULL)
    assert (tmp_path / "out" / "manifest.json").is_file()
    # A stream that is closed lends its number to no file of ours.
    shut = "0>&- 1>&- 2>&-"
    again = ("convert", apart[0], out, "--to", "universal", "--force")
    assert ended(*again, redirect=shut) == (0, "")
    assert ended("verify", out, redirect=shut) == (0, "")
    assert ended("verify", "nowhere", redirect="2>&-") == (4, "")
    assert ended("verify", "nowhere", redirect="> /dev/full 2>&1")[0] == 4


def test_an_interrupt_after_the_work_says_that_it_is_done(
    run: Run, apart: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    out = str(tmp_path / "out")
    monkeypatch.setattr("reshard.api.converting.Converted.to_text", interrupt)
    said = run("convert", apart[0], out, "--to", "universal")
    assert (said.code, said.err) == (130, f"interrupted; `{out}` is complete\n")
    monkeypatch.setattr("reshard.api.converting.Converted.to_text", broken)
    said = run("convert", apart[0], out, "--to", "universal", "--force")
    assert said.code == 1
    assert f"  = note: `{out}` is complete\n" in said.err
    assert "left behind" not in said.err


def test_a_report_replaces_only_a_report(run: Run, apart: tuple[str, str], tmp_path: Path) -> None:
    source = Path(apart[0]) / "model.safetensors"
    before = source.read_bytes()
    (tmp_path / "link.xml").symlink_to(source)
    (tmp_path / "notes.xml").write_text("<notes/>")
    for name in ("link.xml", "notes.xml"):
        said = run("roundtrip", apart[0], "--via", "dcp", "--junit", str(tmp_path / name), "-q")
        assert (said.code, said.out) == (7, "")
        assert said.err == (
            f"error[output-foreign]: {tmp_path / name} is not a report, so it is not replaced\n"
            "  = note: a report is written to a new file, or in the place of an earlier one\n"
            "  = help: choose another name for the report, or remove that file yourself\n"
        )
    assert source.read_bytes() == before
    assert (tmp_path / "notes.xml").read_text() == "<notes/>"
    # An earlier report is replaced, also behind a link; what lies beside it is not touched.
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".report.xml.partial").symlink_to(tmp_path / "precious")
    (tmp_path / "ci.xml").symlink_to(tmp_path / "report.xml")
    for name in ("report.xml", "report.xml", "ci.xml"):
        said = run("roundtrip", apart[0], "--via", "dcp", "--junit", str(tmp_path / name), "-q")
        assert said.code == 0
    assert (tmp_path / "ci.xml").is_symlink()
    assert not (tmp_path / "report.xml").is_symlink()
    assert "<testsuites" in (tmp_path / "report.xml").read_text()
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".report.xml.partial", "a", "b", "ci.xml", "link.xml", "notes.xml", "precious"),
        "report.xml",
    ]


def test_a_report_is_written_to_a_pipe(run: Run, apart: tuple[str, str], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    said = run("roundtrip", apart[0], "--via", "dcp", "--junit", str(pipe), "-q")
    assert said.code == 0
    assert b"<testsuites" in os.read(reader, 1 << 16)
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


def test_a_report_that_has_no_place_is_refused_first(
    run: Run, apart: tuple[str, str], tmp_path: Path
) -> None:
    for name, why in (("a", "it is a folder"), ("x/y.xml", "its folder does not exist")):
        said = run("roundtrip", apart[0], "--via", "dcp", "--junit", str(tmp_path / name), "-q")
        assert said.code == 7
        assert said.err.startswith(f"error[output-unwritable]: {tmp_path / name} cannot be written")
        assert f"  = note: {why}\n" in said.err
