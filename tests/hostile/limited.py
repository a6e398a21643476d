"""Runs one command line in a process of its own, with little memory and little time."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corpus import CONVERT

PLAN = ("dst", "--to", "deepspeed-universal")
MEMORY_NBYTES = 1 << 30
SECONDS = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended.

    Args:  code: its exit code, or minus the signal that ended it.
           peak_nbytes: memory that it took.
    """

    code: int
    out: str
    err: str
    peak_nbytes: int


def warm_up(folder: Path) -> None:
    """Import and build in this process what every command needs."""
    from cases_pickle import model, write

    from reshard.cli import main

    write(folder, model())
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for words in (CONVERT, ("inspect", "dst"), ("verify", "dst"), ("plan", *PLAN)):
            if main(words):
                raise AssertionError(f"`reshard {' '.join(words)}` does not work")
    gc.freeze()


def run_limited(words: Sequence[str], folder: Path, logs: Path) -> Outcome:
    """Run `reshard WORDS` in a folder; its output goes to files in `logs`."""
    shared = _resident_nbytes()
    child = os.fork()
    if not child:
        _run(list(words), folder, logs)
    _, status, usage = os.wait4(child, 0)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        (logs / "out").read_text(encoding="utf-8"),
        (logs / "err").read_text(encoding="utf-8"),
        max(0, usage.ru_maxrss * 1024 - shared),
    )


def _resident_nbytes() -> int:
    """What this process has in memory, which one that is forked from it begins with."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _run(words: list[str], folder: Path, logs: Path) -> None:
    code = 99
    try:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0, closefd=False), "utf-8")
        sys.stderr = io.TextIOWrapper(
            os.fdopen(2, "wb", 0, closefd=False), "utf-8", write_through=True
        )
        os.environ.update(COLUMNS="80", NO_COLOR="1")
        os.environ.pop("RESHARD_DEBUG", None)
        from reshard.cli import main

        _limit()
        code = main(words)
        sys.stdout.flush()
    finally:
        os._exit(code)


def _limit() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_NBYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)  # for what waits instead of computing
