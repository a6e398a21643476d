"""What is taken of memory follows from how much there is, and stays below what is allowed."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import reshard
import safetensors_files
from reshard.language import load_layout

RUN = (
    "import sys; from reshard.cli import main; code = main(sys.argv[1:]); "
    "print(next(int(line.split()[1]) << 10 for line in open('/proc/self/status') "
    "if line.startswith('VmHWM:'))); sys.exit(code)"
)
"""What `getrusage` tells counts the process that started this one, too."""


def many(folder: Path, numbers: list[int]) -> Path:
    """A model folder with a small tensor for each number."""
    tensors = {f"l.{number}.w": ("F32", [2], b"12345678") for number in numbers}
    return safetensors_files.save(folder / "model.safetensors", tensors)


def test_names_with_large_numbers_take_no_more(tmp_path: Path) -> None:
    source = many(tmp_path / "s", [0, 1, 10**15])
    reshard.inspect(source).to_text()
    tracemalloc.start()
    try:
        told = reshard.inspect(source).to_text()
        reshard.plan(source, "dcp:dp=2").to_text()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "l.{0,1,1000000000000000}.w" in told
    assert peak < 64 << 20


def test_runs_of_numbers_are_told_as_before(tmp_path: Path) -> None:
    assert "l.{3..7}.w" in reshard.inspect(many(tmp_path / "a", [3, 4, 5, 6, 7])).to_text()
    assert "l.{3,4}.w" in reshard.inspect(many(tmp_path / "b", [3, 4])).to_text()
    assert "l.{3,4,6}.w" in reshard.inspect(many(tmp_path / "c", [3, 4, 6])).to_text()


def test_a_bound_of_memory_counts_the_plan_too(tmp_path: Path) -> None:
    source = many(tmp_path / "s", list(range(6000)))  # their plan takes more than the message does

    def convert(allowed: int) -> tuple[int, int, str]:
        words = ["convert", str(source), str(tmp_path / "out"), "--to", "dcp:dp=4", "-q"]
        words += ["--max-memory", str(allowed), "--threads", "1"]
        done = subprocess.run(
            [sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False
        )
        return done.returncode, int(done.stdout), done.stderr

    code, used, told = convert(1_000_000)
    assert code == 5
    code, _, told = convert(used)  # enough for what refused it, and not for the plan
    assert code == 5
    assert told.startswith("error[memory-bound]: this conversion needs more than ")
    assert "the lists of 6,000 tensors need that much; no plan was made" in told
    assert not (tmp_path / "out").exists()
    code, used, told = convert(400_000_000)
    assert (code, told) == (0, "")
    assert used < 400_000_000


def test_a_sum_of_many_parts_is_one_rule() -> None:
    parts = " + ".join(f"a{number}:1" for number in range(500))
    layout = load_layout(f'layout x {{\n "t" = [({parts}), ...]\n}}\n')
    (rule,) = layout.rules
    assert len(rule.axes) >= 500
