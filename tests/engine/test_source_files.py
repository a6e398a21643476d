"""Files of a source are read as they were catalogued, or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from reshard.errors import Exit, ReshardError
from reshard.plan.catalog import SourceFile
from reshard.store import source_files
from reshard.store.source_files import SourceFiles


def _read(files: SourceFiles, file: str, byte_offset: int, nbytes: int) -> bytes:
    out = bytearray(nbytes)
    files.pread_into(file, byte_offset, memoryview(out))
    return bytes(out)


def _catalogued(path: Path) -> SourceFile:
    found = path.stat()
    return SourceFile(path.name, found.st_size, found.st_mtime_ns)


def test_a_range_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(100)))
    with SourceFiles(tmp_path, [_catalogued(path)]) as files:
        assert _read(files, "a.bin", 10, 5) == bytes(range(10, 15))
        assert _read(files, "a.bin", 100, 0) == b""
        files.check_unchanged()


def test_a_short_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(10))
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError) as caught:
        _read(files, "a.bin", 8, 4)
    assert caught.value.exit_code == Exit.SOURCE
    assert str(caught.value) == (
        f"error[source-truncated]: `{tmp_path}/a.bin` is too short for its tensors\n"
        "  = note: bytes 8 to 12 are needed, but the file has 10\n"
        "  = help: copy the file again from where the checkpoint was written"
    )


def test_a_file_that_grew_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(10))
    known = _catalogued(path)
    path.write_bytes(bytes(12))
    with SourceFiles(tmp_path, [known]) as files, pytest.raises(ReshardError) as caught:
        _read(files, "a.bin", 0, 4)
    assert str(caught.value) == (
        f"error[source-changed]: `{tmp_path}/a.bin` changed while it was read\n"
        "  = note: it had 10 bytes and has 12 now\n"
        "  = help: wait until nothing writes to the source, then run the command again"
    )


def test_a_file_that_is_written_again_is_found_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(10))
    with SourceFiles(tmp_path) as files:
        _read(files, "a.bin", 0, 4)
        os.utime(path, ns=(0, 12345))
        with pytest.raises(ReshardError) as caught:
            files.check_unchanged()
    assert str(caught.value) == (
        f"error[source-changed]: `{tmp_path}/a.bin` changed while it was read\n"
        "  = note: it has 10 bytes as before, but was written again\n"
        "  = help: wait until nothing writes to the source, then run the command again"
    )


@pytest.mark.parametrize("how", ["replaced", "written"])
def test_a_change_that_keeps_size_and_time_is_found_at_the_end(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(10))
    found = path.stat()
    with SourceFiles(tmp_path, [_catalogued(path)]) as files:
        _read(files, "a.bin", 0, 4)
        new = path if how == "written" else tmp_path / "new"
        new.write_bytes(b"0123456789")
        os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
        new.replace(path)
        with pytest.raises(ReshardError) as caught:
            files.check_unchanged()
    assert str(caught.value) == (
        f"error[source-changed]: `{tmp_path}/a.bin` changed while it was read\n"
        "  = note: it was replaced, or its time of writing, permissions, or links were changed\n"
        "  = help: wait until nothing writes to the source, then run the command again"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError) as caught:
        _read(files, "a.bin", 0, 4)
    assert caught.value.exit_code == Exit.SOURCE
    assert str(caught.value) == (
        f"error[source-unreadable]: `{tmp_path}/a.bin` cannot be read: no such file or directory\n"
        "  = help: check that the file exists, that you may read it, and that its disk has no "
        "errors"
    )


def test_a_file_that_goes_away_is_found_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(10))
    with SourceFiles(tmp_path) as files:
        _read(files, "a.bin", 0, 4)
        path.unlink()
        with pytest.raises(ReshardError, match="source-unreadable"):
            files.check_unchanged()


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "MAX_OPEN", 4)
    for index in range(20):
        (tmp_path / str(index)).write_bytes(bytes([index]) * 8)
    before = len(os.listdir("/proc/self/fd"))
    wrong: list[int] = []

    def read_all(files: SourceFiles, first: int) -> None:
        for step in range(200):
            index = (first + step * 7) % 20
            if _read(files, str(index), 2, 4) != bytes([index]) * 4:
                wrong.append(index)

    with SourceFiles(tmp_path) as files:
        threads = [threading.Thread(target=read_all, args=(files, first)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(os.listdir("/proc/self/fd")) - before <= 4
        files.check_unchanged()
    assert wrong == []
    assert len(os.listdir("/proc/self/fd")) == before
