"""A folder that holds its weights twice: as safetensors and as torch files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import counted, safetensors, sharded

import reshard
from reshard.dtypes import DType
from torch_files import Tensor, saved

A, B = counted(2, 3), counted(4, start=10)
KINDS = {"float32": DType.F32, "float16": DType.F16}
WHY = "`model.safetensors` holds the weights that are read, as transformers does"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def folder(second: Mapping[str, np.ndarray]) -> Path:
    path = Path("model")
    path.mkdir()
    (path / "model.safetensors").write_bytes(safetensors({"a": A, "b": B}))
    tree: dict[str, Any] = {
        name: Tensor(KINDS[str(item.dtype)], item.shape, item.tobytes())
        for name, item in second.items()
    }
    (path / "pytorch_model.bin").write_bytes(saved(tree))
    return path


def warned(check: bool = False) -> str:
    report = reshard.plan("model", "universal", check=check).warnings
    return "\n".join(item.render() for item in report if item.code == "second-weights")


def test_the_set_that_is_not_read_is_listed() -> None:
    model = folder({"a": A, "b": B})
    assert warned() == warned(check=True) == ""
    [left] = reshard.inspect(model).left
    assert (left.file, left.why) == ("pytorch_model.bin", WHY)
    assert reshard.open(model).read("a").tobytes() == A.tobytes()


def test_a_set_of_other_names_and_types_is_told() -> None:
    folder({"a": A.astype(np.float16), "c": B})
    assert warned() == (
        "warning[second-weights]: `pytorch_model.bin` does not contain the same weights as "
        "`model.safetensors`, which is read\n"
        "  = note: only in `model.safetensors`: `b`\n"
        "  = note: only in `pytorch_model.bin`: `c`\n"
        "  = note: of other shapes or types: `a` is F32 [2, 3], and F16 [2, 3] in "
        "`pytorch_model.bin`\n"
        "  = note: transformers reads safetensors files where a folder has both\n"
        "  = help: remove the set that is out of date; `--check` and `verify` compare the bytes"
    )


def test_other_bytes_are_noticed_by_a_check() -> None:
    model = folder({"a": A, "b": B + 1})
    assert warned() == ""
    text = (
        "warning[second-weights]: `pytorch_model.bin` does not contain the same weights as "
        "`model.safetensors`, which is read\n"
        "  = note: other bytes in both: `b`\n"
        "  = note: transformers reads safetensors files where a folder has both\n"
        "  = help: remove the set that is out of date; `--check` and `verify` compare the bytes"
    )
    assert warned(check=True) == text
    assert [item.render() for item in reshard.verify(model).warnings] == [text]


def test_a_second_set_that_cannot_be_read_is_no_error() -> None:
    sharded(Path("model"), {"x.safetensors": {"a": A}})
    Path("model/pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "it was not compared: " in warned()
    assert reshard.verify("model").ok
