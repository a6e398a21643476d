"""Reading small ranges through a window gives what the file holds, with few reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.dtypes import DType
from reshard.storage.torch_file import open_torch_file
from reshard.storage.torch_writer import NewStorage, NewTensor, plan_torch_file
from reshard.storage.window import NBYTES, Window

SIZE = 3 * NBYTES + 17


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose bytes count on."""
    path = tmp_path_factory.mktemp("window") / "data"
    path.write_bytes(bytes(at * 7 % 251 for at in range(SIZE)))
    return path


@given(st.lists(st.tuples(st.integers(0, SIZE + 9), st.integers(0, 2 * NBYTES)), max_size=8))
def test_ranges_are_those_of_the_file(file: Path, wanted: list[tuple[int, int]]) -> None:
    data = file.read_bytes()
    with file.open("rb") as opened:
        window = Window(opened.fileno())
        for at, nbytes in wanted:
            assert window.pread(nbytes, at) == data[at : at + nbytes]


@pytest.mark.parametrize(("numel", "reads"), [(3, 1), (1 << 18, 2)])
def test_a_blob_is_opened_with_few_reads(
    numel: int, reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = NewStorage(DType.F32, numel)
    image = plan_torch_file(NewTensor(storage, 0, (numel,), (1,)), "archive")
    blob = bytearray(image.nbytes)
    for at, part in (*image.head, *image.tail({"0": 0})):
        blob[at : at + len(part)] = part
    path = tmp_path / "blob.pt"
    path.write_bytes(blob)
    done = []
    read = os.pread

    def count(fd: int, nbytes: int, at: int) -> bytes:
        done.append((at, nbytes))
        return read(fd, nbytes, at)

    monkeypatch.setattr(os, "pread", count)
    open_torch_file(path)
    assert len(done) == reads, done
