"""A plan is written whole, with digests, by any number of threads; a failure ends it."""

from __future__ import annotations

import os
import signal
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Made, arrays

from reshard.dtypes import DType
from reshard.engine.cost import peak_memory
from reshard.engine.progress import Progress
from reshard.engine.run import execute
from reshard.errors import ReshardError
from reshard.plan.plan import Array, ArraySpec, Copy, Move, Origin, Placed, Plan
from reshard.store.digest import digest_bytes
from reshard.store.source_files import SourceFiles


class _Memory:
    """A folder whose files are byte arrays; bytes that nobody writes are 0x55."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.writes = 0

    def open_file(self, name: str, nbytes: int) -> int:
        if name not in self.files:
            self.files[name] = bytearray(b"\x55" * nbytes)
        return -1

    def write(self, name: str, byte_offset: int, data: memoryview) -> None:
        self.writes += 1
        assert byte_offset + len(data) <= len(self.files[name])
        with memoryview(self.files[name]) as whole:
            whole[byte_offset : byte_offset + len(data)] = data


@given(
    made=st.lists(arrays(sizes=st.integers(1, 4)), min_size=1, max_size=5),
    threads=st.integers(1, 3),
    buffer_nbytes=st.sampled_from([16, 64, 1 << 20]),
    gap=st.integers(0, 3),
)
def test_every_array_lies_where_it_belongs(
    tmp_path: Path, made: list[Made], threads: int, buffer_nbytes: int, gap: int
) -> None:
    placed, at = [], gap
    for index, item in enumerate(made):
        root = tmp_path / str(index)
        root.mkdir(exist_ok=True)
        item.write(root)
        array = item.array()
        array = Array(array.spec, tuple(_under(copy, index) for copy in array.copies))
        placed.append(Placed(array, "out", at, digest=index % 2 == 0, crc=index % 3 == 0))
        at += array.spec.nbytes + gap
    folder = _Memory()
    reports: list[Progress] = []
    plan = Plan(str(tmp_path), tuple(placed))
    with SourceFiles(tmp_path) as files:
        written = execute(
            plan,
            folder,
            files,
            threads=threads,
            buffer_bytes=buffer_nbytes,
            on_progress=reports.append,
            sizes={"out": at},
        )
    expected = bytearray(b"\x55" * at)
    for item, place, done in zip(made, placed, written, strict=True):
        data = item.expected().tobytes()
        expected[place.byte_offset : place.byte_offset + len(data)] = data
        assert done.placed is place
        assert done.digest == (digest_bytes(data) if place.digest else None)
        assert done.crc == (zlib.crc32(data) if place.crc else None)
    assert folder.files["out"] == expected
    done = [report.nbytes_done for report in reports]
    assert done == sorted(done)
    assert done[-1] == reports[-1].nbytes_total == plan.bytes_written


def _under(copy: Copy, index: int) -> Copy:
    origins = tuple(
        Origin(f"{index}/{o.file}", o.byte_offset, o.literal, o.dtype, o.move, o.where)
        for o in copy.origins
    )
    return Copy(origins, copy.mode, copy.atom, copy.box_lo)


def _dense(label: str, numel: int, file: str, byte_offset: int) -> Array:
    origin = Origin(file, byte_offset, None, DType.F32, Move((numel,), 0, (1,), 0, (1,)), "")
    spec = ArraySpec(label, "param", DType.F32, numel, (), (numel,))
    return Array(spec, (Copy((origin,), "first", label, (0,)),))


def test_small_neighbours_are_written_together(tmp_path: Path) -> None:
    data = np.arange(3000, dtype=np.float32)
    (tmp_path / "a").write_bytes(data.tobytes())
    placed = tuple(Placed(_dense(f"s{i}", 3, "a", i * 12), "out", i * 12) for i in range(1000))
    folder = _Memory()
    with SourceFiles(tmp_path) as files:
        execute(Plan(str(tmp_path), placed), folder, files, threads=1)
    assert folder.files["out"] == data.tobytes()
    assert folder.writes == 2


def _large(root: Path) -> Plan:
    (root / "a").write_bytes(np.arange(1 << 20, dtype=np.float32).tobytes())
    whole = _dense("whole", 1 << 20, "a", 0)
    return Plan(str(root), tuple(Placed(whole, "out", i << 22) for i in range(3)))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_failure_ends_the_run(tmp_path: Path, threads: int) -> None:
    plan = _large(tmp_path)
    (tmp_path / "a").write_bytes(bytes(1 << 21))
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError, match="source-truncated"):
        execute(plan, _Memory(), files, threads=threads, buffer_bytes=1 << 16)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_of_the_folder_ends_the_run(tmp_path: Path, threads: int) -> None:
    class Full(_Memory):
        def write(self, name: str, byte_offset: int, data: memoryview) -> None:
            super().write(name, byte_offset, data)
            if self.writes > 5:
                raise OSError(28, "full")

    plan = _large(tmp_path)
    with SourceFiles(tmp_path) as files, pytest.raises(OSError, match="full"):
        execute(plan, Full(), files, threads=threads, buffer_bytes=1 << 16)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_ends_the_run(tmp_path: Path, threads: int) -> None:
    plan = _large(tmp_path)

    def interrupt(progress: Progress) -> None:
        if progress.nbytes_done == 1 << 20:
            os.kill(os.getpid(), signal.SIGINT)

    folder = _Memory()
    with SourceFiles(tmp_path) as files, pytest.raises(KeyboardInterrupt):
        execute(plan, folder, files, threads=threads, buffer_bytes=1 << 16, on_progress=interrupt)
    for worker in threading.enumerate():
        if worker.name.startswith("reshard-"):
            worker.join()
    assert folder.writes < 3 << 6


def test_a_source_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    plan = _large(tmp_path)
    with SourceFiles(tmp_path) as files, pytest.raises(ReshardError, match="source-changed"):
        execute(
            plan,
            _Memory(),
            files,
            on_progress=lambda _: os.utime(tmp_path / "a", ns=(0, 1)),
        )


def test_memory_stays_below_the_estimate(tmp_path: Path) -> None:
    plan = _large(tmp_path)
    rows = 1 << 10
    origin = Origin("a", 0, None, DType.F32, Move((rows, rows), 0, (1, rows), 0, (rows, 1)), "")
    spec = ArraySpec("turned", "param", DType.F32, rows * rows, (), (rows, rows))
    turned = Array(spec, (Copy((origin,), "first", "turned", (0, 0)),))
    plan = Plan(plan.root, (*plan.placed, Placed(turned, "turned", 0)))
    folder = _Memory()
    with SourceFiles(tmp_path) as files:
        for file, nbytes in (("out", 3 << 22), ("turned", 1 << 22)):
            folder.open_file(file, nbytes)
        tracemalloc.start()
        try:
            execute(plan, folder, files, threads=2, buffer_bytes=1 << 18)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    values = np.frombuffer(folder.files["turned"], np.float32).reshape(rows, rows)
    assert np.array_equal(values.T.reshape(-1), np.arange(rows * rows, dtype=np.float32))
    assert peak < peak_memory(plan, 2, 1 << 18) - peak_memory(Plan("", ()), 0, 0)
    small = peak_memory(Plan("", plan.placed[:1]), 2, 1 << 18)
    assert small == peak_memory(Plan("", plan.placed[:1]), 1, 1 << 18) + (1 << 18) + (1 << 21)
