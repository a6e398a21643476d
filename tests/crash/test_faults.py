"""Every call of the file system fails once: a clear error or a correct result, and never a loss."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import shim
from folders import attempt, codes, left_beside, tree

import reshard
from reshard.errors import Exit

Tell = Callable[[str, str], None]

MODES: dict[str, tuple[shim.Fault, tuple[str, ...] | None]] = {
    "EIO": (shim.fails(errno.EIO), None),
    "ENOSPC": (shim.fails(errno.ENOSPC), shim.CHANGES),
    "EINTR": (shim.fails(errno.EINTR), (*shim.CHANGES, *shim.READS)),
    "EIO after the work was done": (shim.loses_reply(errno.EIO), shim.CHANGES),
    "short": (shim.half, (*shim.READS, *shim.WRITES)),
    "Ctrl-C": (shim.interrupts, (*shim.CHANGES, *shim.READS)),
}


def try_once(source: Path, dst: Path, to: str, at: int, mode: str, *, force: bool = False) -> str:
    """Convert with a fault; what came of it."""
    fault, names = MODES[mode]
    with shim.counted(at, fault, names):
        _, error = attempt(source, dst, to, force=force)
    if isinstance(error, reshard.ReshardError):
        assert error.exit_code in (Exit.SOURCE, Exit.OUTPUT), error
    if isinstance(error, KeyboardInterrupt):
        assert mode == "Ctrl-C"
        assert str(error) == "" or str(error).startswith("interrupted; "), error
    return (codes(error) or ["done"])[0]


def check_whole_or_none(dst: Path, expected: dict[str, bytes], before: dict[str, bytes]) -> None:
    """What is at the destination is complete, or what was there before."""
    assert tree(dst) in (expected, before)
    for path in dst.parent.glob(".*.reshard-partial"):
        with pytest.raises(reshard.ReshardError, match="unfinished-output"):
            reshard.inspect(path)


def again(
    source: Path, dst: Path, to: str, expected: dict[str, bytes], *, force: bool = False
) -> int:
    """The same command without a fault ends with the right bytes; pieces that were there."""
    with shim.counted():
        done, error = attempt(source, dst, to, force=force)
    assert codes(error) in ([], ["output-exists"])  # the latter where nothing was left to do
    assert tree(dst) == expected
    assert left_beside(dst) == []
    return 0 if done is None else done.resumed.arrays


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_any_call_may_fail(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, tell: Tell, mode: str
) -> None:
    run_all(tiny, expected, tmp_path, tell, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["EIO after the work was done", "Ctrl-C"])
def test_any_call_may_fail_while_another_is_replaced(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path, tell: Tell, mode: str
) -> None:
    reshard.convert(tiny, tmp_path / "previous", "universal", states="weights")
    run_all(tiny, expected, tmp_path, tell, mode, previous=tmp_path / "previous")


def run_all(
    source: Path,
    expected: dict[str, bytes],
    folder: Path,
    tell: Tell,
    mode: str,
    previous: Path | None = None,
) -> None:
    """Every N: a conversion in which the N-th call fails, and the same one again."""
    outcomes: Counter[str] = Counter()
    resumed = 0
    force = previous is not None
    before = {} if previous is None else tree(previous)

    def place(name: str) -> Path:
        dst = folder / name / "out"
        dst.parent.mkdir()
        if previous is not None:
            shutil.copytree(previous, dst)
        return dst

    first = place("count")
    with shim.counted(names=MODES[mode][1]) as counter:
        assert attempt(source, first, "universal", force=force)[1] is None
    for at in range(1, counter.count + 1):
        dst = place(str(at))
        outcome = try_once(source, dst, "universal", at, mode, force=force)
        check_whole_or_none(dst, expected, before)
        outcomes[outcome] += 1
        resumed += again(source, dst, "universal", expected, force=force) > 0
    listed = ", ".join(f"{number} {what}" for what, number in sorted(outcomes.items()))
    replaced = ", replacing another" if force else ""
    tell(
        f"fault matrix, universal{replaced}, {mode}",
        f"{counter.count} calls, each failed once: {listed}; {resumed} gone on from; 0 losses",
    )
    assert sum(outcomes.values()) == counter.count > 30
