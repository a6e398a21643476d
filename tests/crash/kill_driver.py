"""Kills a conversion at its N-th call that changes a file system, and runs it again.

    python kill_driver.py SOURCE FOLDER TARGET STEP THREADS kill|power [PREVIOUS]

Each conversion is a process of its own, forked from this one, and is ended by SIGKILL: before the
N-th call, or after it, when a write has done half of its work.  With `power` the machine goes down
as well: what was not synced is lost.  PREVIOUS is a checkpoint that is at
the destination and is to be replaced.  Prints one JSON document of counts; ends with an error at
the first loss.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import shim
from folders import attempt, codes, convert, left_beside, tree
from power import lose_what_was_not_synced, recorded

import reshard
import reshard.engine.units


def forked(
    source: Path, dst: Path, to: str, threads: int, force: bool, at: int, log: Path | None
) -> int:
    """The wait status of a conversion that is killed at a call.

    Args:  log: where its writes are noted, if they are.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        noted = recorded(log) if log is not None else nullcontext()
        with shim.counted(at, shim.kills if at % 2 else shim.kills_after, shim.CHANGES), noted:
            convert(source, dst, to, threads=threads, force=force)
        code = 0
    finally:
        os._exit(code)


def run(
    source: Path,
    folder: Path,
    to: str,
    step: int,
    threads: int,
    previous: Path | None,
    is_power: bool,
) -> dict[str, int]:
    """Every STEP-th call; what came of it."""
    counts: Counter[str] = Counter()
    force = previous is not None
    before = tree(previous) if previous is not None else {}
    convert(source, folder / "first", to)  # what is only done once in a process
    if previous is not None:
        shutil.copytree(previous, folder / "whole")
    with shim.counted(names=shim.CHANGES) as counter:
        convert(source, folder / "whole", to, threads=threads, force=force)
    expected = tree(folder / "whole")
    for at in range(1, counter.count + 1, step):
        dst = folder / str(at) / "out"
        dst.parent.mkdir()
        if previous is not None:
            shutil.copytree(previous, dst)
        log = folder / f"{at}.log" if is_power else None
        status = forked(source, dst, to, threads, force, at, log)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            assert threads > 1, status  # calls of threads have no order: there may be fewer
            counts["ended"] += 1
        counts["killed"] += os.WIFSIGNALED(status)
        if log is not None:
            counts["lost bytes"] += lose_what_was_not_synced(log)
        check(dst, before, expected, force)
        with shim.counted():
            done, error = attempt(source, dst, to, threads=threads, force=force)
        assert codes(error) in ([], ["output-exists"]), (at, error)  # the latter: it was complete
        counts["complete"] += error is not None
        counts["gone on from"] += done is not None and done.resumed.arrays > 0
        assert tree(dst) == expected, at
        assert left_beside(dst) == [], at
        shutil.rmtree(dst.parent)
    return {"calls": counter.count, **counts}


def check(dst: Path, before: dict[str, bytes], expected: dict[str, bytes], force: bool) -> None:
    """What a kill leaves: all of the new folder, or all of the one before it, or none."""
    found = tree(dst)
    if force and not found:  # between the two renames
        found = tree(dst.parent / ".out.reshard-old")
    assert found in (before, expected), sorted(found)
    partial = dst.parent / ".out.reshard-partial"
    if partial.exists():
        error = inspected(partial / "data")
        assert codes(error) == ["unfinished-output"], error


def inspected(folder: Path) -> BaseException | None:
    """What is wrong with a folder, for `inspect`."""
    try:
        reshard.inspect(folder)
    except reshard.ReshardError as error:
        return error
    return None


if __name__ == "__main__":
    reshard.engine.units.MAX_TOGETHER = 1
    source, folder, to, step, threads, how, *rest = sys.argv[1:]
    made = run(
        Path(source),
        Path(folder),
        to,
        int(step),
        int(threads),
        Path(rest[0]) if rest else None,
        how == "power",
    )
    print(json.dumps(made))
