"""An output of many files needs a few descriptors, and no more where there are no more."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.engine.progress import Progress


def fds() -> int:
    """Descriptors that this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_few_files_are_open_at_once(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    reshard.convert(source, tmp_path / "all", "dcp:dp=40")
    for module in ("store.open_files", "store.source_files"):
        monkeypatch.setattr(f"reshard.{module}.MAX_OPEN", 3)
    before, most = fds(), [0]

    def count(_: Progress) -> None:
        most[0] = max(most[0], fds())

    done = reshard.convert(source, tmp_path / "few", "dcp:dp=40", on_progress=count)
    assert len(done.report.files) > 40
    assert most[0] <= before + 12  # the source's and the output's, a lock, a journal, listings
    assert fds() == before
    for name in sorted(path.name for path in (tmp_path / "all").iterdir() if path.is_file()):
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert (
        reshard.verify(source, tmp_path / "few").mismatches
        == reshard.verify(source, tmp_path / "all").mismatches
    )


def test_a_run_that_is_stopped_goes_on_with_few_files(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    monkeypatch.setattr("reshard.store.open_files.MAX_OPEN", 2)
    monkeypatch.setattr("reshard.engine.units.MAX_TOGETHER", 4)

    def stop(progress: Progress) -> None:
        if 2 * progress.nbytes_done > progress.nbytes_total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reshard.convert(source, tmp_path / "out", "dcp:dp=9", on_progress=stop)
    done = reshard.convert(source, tmp_path / "out", "dcp:dp=9")
    assert done.resumed.arrays
    reshard.convert(source, tmp_path / "whole", "dcp:dp=9")
    assert reshard.verify(tmp_path / "whole", tmp_path / "out").ok


def test_a_limit_that_is_too_low_is_named(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("reshard.store.open_files.OpenFiles.add", add)
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.convert(
            fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt", tmp_path / "out", "universal"
        )
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert str(caught.value) == (
        f"error[output-unwritable]: {tmp_path}/out cannot be written\n"
        f"  = note: too many files are open: this process may have {limit} at once\n"
        "  = help: allow more open files with `ulimit -n`, or use fewer threads"
    )
    assert list(tmp_path.iterdir()) == []
