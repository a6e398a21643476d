"""A disk without room, and one that fails: what is told, what is left, and how it goes on."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import shim
from folders import attempt, tree
from tiny import make_tiny

import reshard

AGAIN = "\n  = help: run the same command again to continue from there, or remove that folder"


def failed(source: Path, dst: Path, at: int, code: int, name: str) -> str:
    """The message when the N-th call of a name fails."""
    with shim.counted(at, shim.fails(code), (name,)):
        _, error = attempt(source, dst, "universal")
    assert isinstance(error, reshard.ReshardError)
    return str(error).replace(str(dst.parent), "...")


def test_room_runs_out(tiny: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    told = failed(tiny, tmp_path / "out", 8, errno.ENOSPC, "pwrite")
    free = told.partition("needed at once, ")[2].partition(" are free")[0]
    assert told == (
        "error[disk-full]: there is no room for .../out\n"
        f"  = note: 40 bytes more are needed at once, {int(free)} are free\n"
        "  = note: 80 B of 1.3 kB are written and kept in `.out.reshard-partial`\n"
        "  = help: make room, or choose a destination on another disk"
        f"{AGAIN}"
    )
    assert reshard.convert(tiny, tmp_path / "out", "universal").resumed.arrays == 2
    assert tree(tmp_path / "out") == expected


def test_there_was_no_room_from_the_start(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    class Full:
        f_blocks, f_bfree, f_bavail, f_frsize = 1000, 1, 1, 512

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    _, error = attempt(tiny, tmp_path / "out", "universal")
    monkeypatch.setattr(os, "statvfs", real)
    nbytes = reshard.plan(tiny, "universal").nbytes_written
    assert str(error).replace(str(tmp_path), "...") == (
        "error[disk-full]: there is no room for .../out\n"
        f"  = note: {nbytes} bytes more are needed at once, 512 are free\n"
        "  = help: make room, or choose a destination on another disk"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_while_it_is_written(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert failed(tiny, tmp_path / "out", 9, errno.EIO, "pwrite") == (
        "error[output-unwritable]: .../out cannot be written\n"
        "  = note: Input/output error\n"
        "  = note: 120 B of 1.3 kB are written and kept in `.out.reshard-partial`\n"
        "  = help: check the permissions of its folder, or choose another destination"
        f"{AGAIN}"
    )
    assert reshard.convert(tiny, tmp_path / "out", "universal").resumed.arrays == 3
    assert tree(tmp_path / "out") == expected


def test_what_could_not_be_synced_is_not_trusted(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """The system may take pages for written that it failed to write."""
    told = failed(tiny, tmp_path / "out", 3, errno.EIO, "fsync")
    assert told.startswith("error[output-unwritable]: .../out cannot be written\n")
    done = reshard.convert(tiny, tmp_path / "out", "universal")
    assert done.resumed.arrays == 0
    (note,) = done.report.warnings
    assert note.code == "started-anew"
    assert "could not be flushed to disk" in note.render()
    assert tree(tmp_path / "out") == expected


def test_a_journal_that_cannot_be_written_is_no_failure(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Its first line and its last are written; between them there is no room for any record."""
    with shim.counted(3, shim.fails(errno.ENOSPC), ("write",)):
        assert attempt(tiny, tmp_path / "out", "universal")[1] is None
    assert tree(tmp_path / "out") == expected


def limited(source: Path, dst: Path, nbytes: int) -> subprocess.CompletedProcess[str]:
    """A conversion by the command line in a process whose files may not be larger."""
    return subprocess.run(
        [sys.executable, "-m", "reshard", "convert", source, dst, "--to", "universal"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # it would be cut short, too
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes)),
    )


def test_files_that_may_not_grow(tiny: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    done = limited(tiny, tmp_path / "out", 400)
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr.startswith("error[output-unwritable]: ")
    assert "\n  = note: File too large\n" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert reshard.convert(tiny, tmp_path / "out", "universal").resumed.arrays == 0
    assert tree(tmp_path / "out") == expected


def small_disk(folder: Path, nbytes: int) -> Callable[[], None]:
    """A function for a new process: mounts a small disk in memory, where that is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount() -> None:
        options = f"size={nbytes}".encode()
        for flags in (0x00020000, 0x10020000):  # a name space of its own; one of users beside it
            if libc.unshare(flags) == 0:
                libc.mount(b"none", b"/", None, 0x44000, None)
                if libc.mount(b"none", bytes(folder), b"tmpfs", 0, options) == 0:
                    return

    return mount


SCRIPT = """
import os, sys
import reshard, reshard.engine.units as units
units.MAX_TOGETHER = 1
source, disk = sys.argv[1:]
is_small = os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize < 1 << 20
ballast = os.path.join(disk, "ballast")
with open(ballast, "wb") as file:
    file.write(bytes(64 << 10) if is_small else b"1")

def full(progress):
    # Where no disk could be mounted, the room is used up by a limit of the process instead.
    if progress.nbytes_done == 32 << 10:
        if is_small:
            try:
                with open(os.path.join(disk, "filler"), "wb", buffering=0) as file:
                    while True:
                        file.write(bytes(1024))
            except OSError:
                pass
        else:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

out = os.path.join(disk, "out")
try:
    reshard.convert(source, out, "universal", threads=1, on_progress=full)
except reshard.ReshardError as error:
    print(error.diagnostics[0].code, "kept" in str(error))
for name in ("ballast", "filler"):
    if os.path.exists(os.path.join(disk, name)):
        os.unlink(os.path.join(disk, name))
if not is_small:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
done = reshard.convert(source, out, "universal")
print(done.resumed.arrays, reshard.verify(source, out).ok and reshard.verify(out).ok)
print("a disk of its own" if is_small else "a limit of the process")
"""


def test_a_small_disk_fills_up_and_is_given_room(
    tmp_path: Path, tell: Callable[[str, str], None]
) -> None:
    source = make_tiny(tmp_path / "made", rows=2048)
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, source, tmp_path / "disk"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_disk(tmp_path / "disk", 256 << 10),
    )
    assert done.returncode == 0, done.stderr
    first, second, how, _ = done.stdout.split("\n")
    assert first == ("disk-full True" if how == "a disk of its own" else "output-unwritable True")
    assert second == "2 True"
    tell("full disk, universal", f"{how}: full after 2 of 6 pieces, gone on from; 0 losses")
