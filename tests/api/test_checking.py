"""`check`: a source is held to its own digests or checksums before anything is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import reshard
from reshard.api.source import open_source
from reshard.dtypes import DType
from reshard.storage.safetensors import layout_header
from steady import steady
from torch_files import Tensor, saved


def _flip(folder: Path, name: str, state: str) -> Path:
    """Change one bit of a tensor; its file keeps its size."""
    catalog = open_source(folder).catalog
    tensor = next(t for t in catalog.tensors if (t.name, t.state) == (name, state))
    fragment = tensor.fragments[-1]
    path = Path(catalog.root) / fragment.file
    with path.open("r+b") as file:
        file.seek(fragment.byte_offset + 8)
        (byte,) = file.read(1)
        file.seek(fragment.byte_offset + 8)
        file.write(bytes([byte ^ 1]))
    return path


@pytest.fixture
def universal(fixture_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A universal checkpoint."""
    out = tmp_path / "universal"
    reshard.convert(fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt", out, "universal")
    return out


def test_a_source_that_is_as_it_was_written(universal: Path, tmp_path: Path) -> None:
    assert reshard.inspect(universal, check=True).oddities == ()
    assert reshard.convert(universal, tmp_path / "b", "universal", check=True).report.warnings == ()
    assert reshard.verify(universal, tmp_path / "b").ok


def test_a_byte_of_a_universal_checkpoint(universal: Path, tmp_path: Path) -> None:
    file = _flip(universal, "model.norm.weight", "exp_avg")
    assert reshard.plan(universal, "universal").covered  # nothing is read without it
    for use in (
        lambda: reshard.inspect(universal, check=True),
        lambda: reshard.plan(universal, "deepspeed:zero=1,dp=2", check=True),
        lambda: reshard.convert(universal, tmp_path / "out", "universal", check=True),
    ):
        with pytest.raises(reshard.ReshardError) as caught:
            use()
        (found,) = caught.value.diagnostics
        assert (found.code, caught.value.exit_code) == ("digest-mismatch", 4)
        assert found.headline == "`model.norm.weight` (exp_avg) is not what was written"
        assert str(file) in found.notes[0]
    assert not (tmp_path / "out").exists()


def test_a_byte_of_a_torch_file(fixture_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(fixture_checkpoint("z3_fp32_dp2_untied") / "ckpt", folder)
    _flip(folder, "model.norm.weight", "master")
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.convert(folder, tmp_path / "out", "universal", check=True)
    assert [item.code for item in caught.value.diagnostics] == ["crc-mismatch"]


def test_a_format_without_checksums_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    head, _, nbytes = layout_header({"a": (DType.F32, (2, 3))}, {"format": "pt"})
    data = np.arange(6, dtype="<f4").tobytes()
    assert nbytes == len(head) + len(data)
    (folder / "model.safetensors").write_bytes(head + data)
    (told,) = reshard.inspect(folder, check=True).oddities
    assert told.render() == (
        "warning[no-checksums]: a Hugging Face model has no checksums of its tensors, so they "
        "cannot be checked\n"
        "  = note: only this is checked: each file is complete, and copies of a tensor agree\n"
        "  = help: compare it with another copy of it: `reshard diff A B`"
    )
    found = reshard.verify(folder)
    assert (found.ok, found.checksums) == (True, False)
    assert steady(found.to_text()) == (
        f"readable: {folder}\n"
        "  1 tensor; every file is complete, and copies agree, but\n"
        "  the format has no checksums: changed bytes would go unnoticed\n"
        "  in 0.10 s, 4.0 MB/s"
    )


def test_the_library_opens_what_a_loader_would(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    entries = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2**40, 2**40, 0], "data_offsets": [8, 8]},
    }
    head = json.dumps(entries).encode()
    data = len(head).to_bytes(8, "little") + head + bytes(8)
    (folder / "model.safetensors").write_bytes(data)
    found = reshard.verify(folder)
    assert not found.ok
    (fault,) = found.faults
    text = fault.render().replace(version("safetensors"), "VERSION")
    assert text == (
        "error[loader-refuses]: the safetensors library does not load "
        f"{folder / 'model.safetensors'}\n"
        "  = note: Error while deserializing header: overflow computing buffer size from shape "
        "and/or element type\n"
        "  = note: its version is VERSION\n"
        "  = help: write the file again with that library, or use a version that reads it"
    )


def test_checksums_of_single_files_prove_no_folder(
    fixture_checkpoint: Callable[[str], Path],
) -> None:
    folder = fixture_checkpoint("dcp_dp2_tied") / "ckpt"
    found = reshard.verify(folder)
    assert (found.ok, found.is_whole, found.unchecked) == (True, False, ())
    head, told, *_ = found.to_text().splitlines()
    assert head == f"intact: {folder}"
    assert told.endswith(": every file matches its own checksums,")


def test_torch_files_of_a_model_have_checksums(tmp_path: Path) -> None:
    weight = Tensor(DType.F32, (2,), np.arange(2, dtype="<f4").tobytes())
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(saved({"a": weight}))
    assert reshard.verify(tmp_path).checksums
    data = bytearray(file.read_bytes())
    at = data.index(weight.data)
    data[at] ^= 1
    file.write_bytes(bytes(data))
    assert [item.code for item in reshard.verify(tmp_path).faults] == ["crc-mismatch"]
