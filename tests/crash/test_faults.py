"""Every call of the file system fails once: a clear error or a correct result, and never a loss."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import shim
from tiny import tree

import reshard
from reshard.errors import Exit

Tell = Callable[[str, str], None]

WRITING = (
    *("open", "pwrite", "write", "posix_fallocate", "ftruncate", "fsync"),
    *("mkdir", "rename", "close", "unlink", "rmdir"),
)
MODES: dict[str, tuple[shim.Fault, tuple[str, ...] | None]] = {
    "EIO": (shim.fails(errno.EIO), None),
    "ENOSPC": (shim.fails(errno.ENOSPC), WRITING),
    "EINTR": (shim.fails(errno.EINTR), (*WRITING, *shim.READS)),
    "EIO after the work was done": (shim.loses_reply(errno.EIO), WRITING),
    "short": (shim.half, (*shim.READS, *shim.WRITES)),
    "Ctrl-C before": (shim.interrupts_before, None),
    "Ctrl-C after": (shim.interrupts, None),
}
TARGETS = ("universal", "deepspeed-universal")


def convert(source: Path, dst: Path, to: str, *, force: bool = False) -> reshard.Converted:
    """The conversion that is made to fail; one thread, so that calls have an order."""
    return reshard.convert(source, dst, to, threads=1, force=force)


def try_once(
    source: Path, dst: Path, to: str, at: int, mode: str, *, force: bool = False
) -> tuple[str, int]:
    """Convert with a fault; what came of it, and how many calls were counted."""
    fault, names = MODES[mode]
    with shim.counted(at, fault, names) as counter:
        try:
            convert(source, dst, to, force=force)
        except reshard.ReshardError as error:
            assert error.exit_code in (Exit.SOURCE, Exit.OUTPUT), error
            outcome = error.diagnostics[0].code
        except KeyboardInterrupt as stop:
            assert mode.startswith("Ctrl-C")
            assert str(stop) == "" or str(stop).startswith("interrupted; "), stop
            outcome = "interrupted"
        else:
            outcome = "done"
    return outcome, counter.count


def check_whole_or_none(dst: Path, expected: dict[str, bytes], before: dict[str, bytes]) -> None:
    """What is at the destination is complete, or what was there before."""
    found = tree(dst)
    assert found in (expected, before)
    for path in dst.parent.glob(".*.reshard-partial"):
        with pytest.raises(reshard.ReshardError, match="unfinished-output"):
            reshard.inspect(path)


def again(source: Path, dst: Path, to: str, expected: dict[str, bytes], outcome: str) -> int:
    """The same command without a fault ends with the right bytes and leaves nothing beside them."""
    with shim.counted():
        try:
            done = convert(source, dst, to)
        except reshard.ReshardError as error:
            assert error.diagnostics[0].code == "output-exists", error  # nothing was left to do
            assert tree(dst) == expected
            resumed = 0
        else:
            resumed = done.resumed.arrays
    assert tree(dst) == expected
    left = sorted(path.name for path in dst.parent.iterdir())
    assert left == [dst.name], (outcome, left)
    return resumed


@pytest.mark.parametrize("mode", MODES)
def test_any_call_may_fail(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, tell: Tell, mode: str
) -> None:
    run_all(tiny, "universal", expected, tmp_path, tell, mode)


def run_all(
    source: Path, to: str, expected: dict[str, bytes], folder: Path, tell: Tell, mode: str
) -> None:
    """Every N: a conversion in which the N-th call fails, and the same one again."""
    outcomes: Counter[str] = Counter()
    resumed, at, count = 0, 0, 1
    while at < count:
        at += 1
        dst = folder / str(at) / "out"
        dst.parent.mkdir()
        outcome, found = try_once(source, dst, to, at, mode)
        count = max(found, at) if at == 1 else count
        check_whole_or_none(dst, expected, {})
        outcomes[outcome] += 1
        resumed += again(source, dst, to, expected, outcome) > 0
    listed = ", ".join(f"{number} {what}" for what, number in sorted(outcomes.items()))
    tell(
        f"fault matrix, {to}, {mode}",
        f"{at} calls, each failed once: {listed}; {resumed} gone on from; 0 losses",
    )
    assert at > 5
    assert os.listdir(folder)
