"""Files that are made while they are read hold what writing them would have written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from oracle import Made, arrays

from reshard.engine import made_files
from reshard.engine.made_files import MadeFiles
from reshard.engine.run import execute
from reshard.plan.plan import Placed, Plan
from reshard.store.source_files import SourceFiles
from reshard.store.sparse import SparseFolder


@given(
    made=arrays(sizes=st.integers(1, 4)),
    before=st.integers(0, 9),
    copies=st.integers(1, 3),
    hole=st.lists(st.booleans(), min_size=3, max_size=3),
    window=st.sampled_from([16, 48, 1 << 20]),
    reads=st.lists(st.tuples(st.integers(0, 999), st.integers(1, 999)), max_size=6),
)
def test_any_range_is_what_would_have_been_written(
    tmp_path: Path,
    made: Made,
    before: int,
    copies: int,
    hole: list[bool],
    window: int,
    reads: list[tuple[int, int]],
) -> None:
    source, folder = tmp_path / "source", tmp_path / "target"
    shutil.rmtree(folder, ignore_errors=True)
    for path in (source, folder):
        path.mkdir(exist_ok=True)
    made.write(source)
    data = made.expected().tobytes()
    size = len(data)
    starts = [before + number * (size + 1) for number in range(copies)]
    plan = Plan(str(source), tuple(Placed(made.array(), "part/a", start) for start in starts))
    expected = bytearray(before + copies * (size + 1))
    for start in starts:
        expected[start : start + size] = data
    holes = {
        "part/a": [
            (start, start + size)
            for start, is_hole in zip(starts, hole, strict=False)
            if is_hole and size
        ]
    }
    with SourceFiles(source) as files:
        with SparseFolder(folder, holes) as sparse:
            execute(plan, sparse, files, threads=1, sizes={"part/a": len(expected)})
        on_disk = (folder / "part" / "a").read_bytes()
        assert len(on_disk) == len(expected)
        assert not any(any(on_disk[start:stop]) for start, stop in holes["part/a"])
        before_nbytes = made_files.WINDOW_NBYTES
        made_files.WINDOW_NBYTES = window
        try:
            root = folder / "part"
            with MadeFiles(plan, files, folder=folder, root=root, holes=holes) as again:
                for start, count in [(0, len(expected)), *reads]:
                    at = start % len(expected)
                    out = np.full(min(count, len(expected) - at), 0x55, np.uint8).data
                    again.pread_into("a", at, out)
                    assert bytes(out) == bytes(expected[at : at + len(out)])
        finally:
            made_files.WINDOW_NBYTES = before_nbytes


def test_windows_that_are_kept_are_few(tmp_path: Path) -> None:
    assert made_files.WINDOWS * made_files.WINDOW_NBYTES <= 8 << 20
