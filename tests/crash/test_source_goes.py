"""A source that changes, is cut short, goes away, or fails while it is read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import shim
from folders import attempt, tree

import reshard
from reshard.engine.progress import Progress

KEPT = "\n  = note: 80 B of 1.3 kB are written and kept in `.out.reshard-partial`"
AGAIN = "\n  = help: run the same command again to continue from there, or remove that folder"


def meanwhile(source: Path, dst: Path, harm: Callable[[Path], None]) -> str:
    """Convert, and harm the file with the weights after two of its tensors; what is told."""
    (file,) = source.glob("model-*.safetensors")
    done: list[int] = []

    def after_two(progress: Progress) -> None:
        done.append(progress.nbytes_done)
        if len(done) == 2:
            harm(file)

    with pytest.raises(reshard.ReshardError) as caught:
        reshard.convert(source, dst, "universal", threads=1, on_progress=after_two)
    assert not dst.exists()
    return str(caught.value).replace(str(source.parent), "...")


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 60)


def test_a_source_that_is_cut_short(copied: Path, tmp_path: Path) -> None:
    (file,) = copied.glob("model-*.safetensors")
    content, found = file.read_bytes(), file.stat()
    size = len(content)
    told = meanwhile(copied, tmp_path / "out", cut_short)
    assert told == (
        f"error[source-truncated]: `.../copied/{file.name}` is too short for its tensors\n"
        f"  = note: bytes {size - 40} to {size} are needed, but the file has {size - 60}"
        f"{KEPT}\n"
        "  = help: copy the file again from where the checkpoint was written"
        f"{AGAIN}"
    )
    file.write_bytes(content)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert reshard.convert(copied, tmp_path / "out", "universal").resumed.arrays == 2
    assert reshard.verify(copied, tmp_path / "out").ok


def test_a_source_that_is_written_to(copied: Path, tmp_path: Path) -> None:
    told = meanwhile(copied, tmp_path / "out", lambda file: os.utime(file, ns=(0, 1)))
    (file,) = copied.glob("model-*.safetensors")
    assert told == (
        f"error[source-changed]: `.../copied/{file.name}` changed while it was read\n"
        f"  = note: it has {file.stat().st_size} bytes as before, but was written again\n"
        "  = help: wait until nothing writes to the source, then run the command again"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["copied"]


def test_a_source_that_goes_away(copied: Path, tmp_path: Path, tiny: Path) -> None:
    told = meanwhile(copied, tmp_path / "out", lambda file: file.rename(tmp_path / "away"))
    (name,) = (path.name for path in tiny.glob("model-*.safetensors"))
    assert told == (
        f"error[source-unreadable]: `.../copied/{name}` cannot be read: no such file or "
        "directory\n"
        "  = note: 240 B of 1.3 kB are written and kept in `.out.reshard-partial`\n"
        "  = help: check that the file exists, that you may read it, and that its disk has no "
        "errors"
        f"{AGAIN}"
    )
    (tmp_path / "away").rename(copied / name)
    assert reshard.convert(copied, tmp_path / "out", "universal").resumed.arrays == 6
    assert reshard.verify(copied, tmp_path / "out").ok


def test_a_disk_that_fails_while_it_is_read(
    tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with shim.counted(8, shim.fails(errno.EIO), ("preadv",)):
        _, error = attempt(tiny, tmp_path / "out", "universal")
    assert isinstance(error, reshard.ReshardError)
    (name,) = (path.name for path in tiny.glob("exp_avg-*.safetensors"))
    assert str(error) == (
        f"error[source-unreadable]: `{tiny / name}` cannot be read: input/output error\n"
        "  = note: 120 B of 1.3 kB are written and kept in `.out.reshard-partial`\n"
        "  = help: check that the file exists, that you may read it, and that its disk has no "
        "errors"
        f"{AGAIN}"
    )
    assert reshard.convert(tiny, tmp_path / "out", "universal").resumed.arrays == 3
    assert tree(tmp_path / "out") == expected
