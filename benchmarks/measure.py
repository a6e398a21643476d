"""What one command costs: wall time, CPU time, memory, and the disk it needs on the way."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of one command.

    Args:  wall, cpu: seconds; cpu is user and system time of the process and its children.
           process_nbytes: largest resident memory of one process.
           tree_nbytes: largest sum over the process and its descendants, of which shared pages are
                        counted once per process; sampled.
           output_nbytes: what the command left.  temporary_nbytes: the most that it had on disk
                          beyond that; sampled.
    """

    wall: float
    cpu: float
    process_nbytes: int
    tree_nbytes: int
    output_nbytes: int
    temporary_nbytes: int


def run_measured(command: list[str], out: Path, environment: dict[str, str]) -> Cost:
    """Run a command that writes under the folder `out`, which the caller has just made.

    Raises:  SystemExit with the end of what the command printed, when it fails.
    """
    log = out.with_name(out.name + ".log")
    peak = {"tree": 0, "disk": 0}
    done = threading.Event()
    with log.open("wb") as printed:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, env=environment
        )

        def watch() -> None:
            while not done.wait(POLL_SECONDS):
                peak["tree"] = max(peak["tree"], _tree_nbytes(process.pid))
                peak["disk"] = max(peak["disk"], disk_nbytes(out))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
    if process.returncode != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
    output = disk_nbytes(out)
    return Cost(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        process_nbytes=usage.ru_maxrss * 1024,
        tree_nbytes=max(peak["tree"], usage.ru_maxrss * 1024),
        output_nbytes=output,
        temporary_nbytes=max(0, peak["disk"] - output),
    )


def disk_nbytes(folder: Path) -> int:
    """The bytes of all files under a folder that may be changing meanwhile."""
    nbytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                nbytes += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return nbytes


def _tree_nbytes(pid: int) -> int:
    """Resident bytes of a process and its descendants; 0 where /proc does not tell."""
    nbytes, pending = 0, [pid]
    while pending:
        here = Path("/proc") / str(pending.pop())
        try:
            nbytes += int((here / "statm").read_text(encoding="ascii").split()[1]) * _PAGE_NBYTES
            for task in (here / "task").iterdir():
                pending += map(int, (task / "children").read_text(encoding="ascii").split())
        except (OSError, ValueError):
            continue
    return nbytes


_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")
