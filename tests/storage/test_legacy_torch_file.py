"""The file format of torch before 1.6 gives the tensors that the zip form gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reshard
from reshard.dtypes import DType
from torch_files import Tensor, saved, saved_legacy

LONG = {f"state.{number}.{'x' * 40}": number for number in range(3000)}


def _tree() -> dict[str, Tensor]:
    half = np.arange(6, dtype="<f2").tobytes()
    return {
        "a.weight": Tensor(DType.F32, (2, 3), np.arange(6, dtype="<f4").tobytes()),
        "b.weight": Tensor(DType.F16, (6,), half),
        "c.weight": Tensor(DType.BF16, (3, 2), half),
        "empty": Tensor(DType.I64, (0, 4), b""),
    }


def _model(folder: Path, data: bytes) -> Path:
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(data)
    return folder


def test_bit_equal(tmp_path: Path) -> None:
    old = _model(tmp_path / "old", saved_legacy(_tree(), tmp_path))
    new = _model(tmp_path / "new", saved(_tree()))
    assert reshard.verify(old, new).ok
    checkpoint = reshard.open(old)
    for name, tensor in _tree().items():
        found = checkpoint.read(name)
        assert (found.shape, found.tobytes()) == (tensor.shape, tensor.data)


def test_no_checksum_is_claimed(tmp_path: Path) -> None:
    old = _model(tmp_path / "old", saved_legacy(_tree(), tmp_path))
    found = reshard.verify(old)
    assert (found.ok, found.unchecked) == (True, ("pytorch_model.bin",))


def test_a_pickle_that_is_longer_than_what_is_read_at_first(tmp_path: Path) -> None:
    shared = Tensor(DType.F32, (1,), bytes(4))
    tree = dict.fromkeys(LONG, shared) | _tree()
    old = _model(tmp_path / "old", saved_legacy(tree, tmp_path))
    assert reshard.open(old).read("a.weight").ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_file_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = saved_legacy(_tree(), tmp_path)
    _model(Path("old"), data[:-1])
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.open("old")
    assert [item.code for item in caught.value.diagnostics] == ["truncated"]
