"""Any range of any array equals what nested loops make of it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Made, arrays

from reshard.engine import gather
from reshard.engine.fill import Filler
from reshard.store.source_files import SourceFiles


def _filled(made: Made, files: SourceFiles, start: int, stop: int, copies: int = 1) -> bytes:
    out = np.full((stop - start) * made.spec.dtype.itemsize, 0x77, np.uint8)
    Filler(made.array(copies), files).fill(start, stop, out)
    return out.tobytes()


@given(made=arrays(), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)), copies=st.integers(1, 3))
def test_a_range_is_what_nested_loops_make(
    tmp_path: Path, made: Made, ends: tuple[float, float], copies: int
) -> None:
    made.write(tmp_path)
    start, stop = sorted(round(end * made.spec.numel) for end in ends)
    with SourceFiles(tmp_path) as files:
        whole = made.expected()
        assert _filled(made, files, 0, made.spec.numel, copies) == whole.tobytes()
        assert _filled(made, files, start, stop, copies) == whole[start:stop].tobytes()


@given(made=arrays(sizes=st.integers(1, 9)), window=st.integers(1, 40))
def test_small_reads_make_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Made, window: int
) -> None:
    """With buffers and gaps of a few bytes every way to read is taken."""
    made.write(tmp_path)
    monkeypatch.setattr(gather, "SCRATCH_NBYTES", 64)
    monkeypatch.setattr(gather, "GAP_NBYTES", 8)
    monkeypatch.setattr(gather, "ROW_NBYTES", 8)
    with SourceFiles(tmp_path) as files:
        parts = [
            _filled(made, files, start, min(start + window, made.spec.numel), 2)
            for start in range(0, made.spec.numel, window)
        ]
    assert b"".join(parts) == made.expected().tobytes()
