"""What is read of a model folder, and that every byte of it arrives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from model_folders import counted, safetensors, sharded, torch_shard

import reshard
from reshard.dtypes import DType
from reshard.formats import recognize
from reshard.formats.hf.read import read
from reshard.storage.torch_writer import NewStorage, NewTensor
from torch_files import save

A, B = counted(3, 4), counted(5, start=100)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def contents(folder: str) -> dict[str, np.ndarray]:
    """Every weight that the library reads of a folder."""
    checkpoint = reshard.open(folder)
    return {name: checkpoint.read(name, "param") for name in checkpoint.tensors}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in found.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in wanted.items()
    }


def test_a_sharded_set() -> None:
    sharded(
        Path("model"), {"model-00001-of-00002.safetensors": {"a": A}, "x.safetensors": {"b": B}}
    )
    assert recognize(Path("model")) == "hf"
    same(contents("model"), {"a": A, "b": B})


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_single_file(name: str) -> None:
    Path("model").mkdir()
    Path("model", name).write_bytes(safetensors({"a": A, "b": B}))
    same(contents("model"), {"a": A, "b": B})


def test_numbers_of_four_bits_are_carried_in_pairs() -> None:
    Path("model").mkdir()
    pairs = np.arange(6, dtype=np.uint8).reshape(2, 3)
    scales = np.arange(4, dtype=np.uint8)
    kinds = {"w": ("F4", [2, 6]), "s": ("F8_E8M0", [4])}
    data = safetensors({"w": pairs, "s": scales}, kinds=kinds)
    Path("model/model.safetensors").write_bytes(data)
    found = {t.name: (t.dtype, t.shape) for t in read(Path("model")).tensors}
    assert found == {"w": (DType.F4, (2, 3)), "s": (DType.F8_E8M0, (4,))}
    reshard.convert("model", "out", "universal")
    reshard.verify("out")
    written = Path("out/model-00001-of-00001.safetensors").read_bytes()
    assert b'"w":{"dtype":"F4","shape":[2,6],"data_offsets":[4,10]}' in written
    assert written.endswith(scales.tobytes() + pairs.tobytes())


def test_shards_of_torch_are_put_together() -> None:
    whole = counted(5, 2)
    torch_shard(Path("model"), 1, 1, 1, {"w": ([0, 0], whole[:2]), "n": ([0], B)})
    torch_shard(Path("model"), 2, 1, 1, {"w": ([2, 0], whole[2:4])})
    torch_shard(Path("model"), 3, 1, 1, {"w": ([4, 0], whole[4:])})
    assert read(Path("model")).oddities == ()
    same(contents("model"), {"w": whole, "n": B})


def test_shards_that_cut_columns_and_leave_a_rank_empty() -> None:
    whole = counted(2, 4)
    torch_shard(Path("model"), 1, 1, 1, {"w": ([0, 0], whole[:, :3].copy())})
    torch_shard(Path("model"), 2, 1, 1, {"w": ([0, 3], whole[:, 3:].copy())})
    torch_shard(Path("model"), 3, 1, 1, {"w": ([0, 4], whole[:, 4:].copy())})
    same(contents("model"), {"w": whole})


def test_a_last_rank_that_may_be_missing_is_told() -> None:
    torch_shard(Path("model"), 1, 1, 1, {"w": ([0], counted(2))})
    torch_shard(Path("model"), 2, 1, 1, {"w": ([2], counted(2))})
    assert [item.render() for item in read(Path("model")).oddities] == [
        "warning[unproved-shapes]: nothing says that rank 1 of model was the last\n"
        "  = note: its files do not say how large the whole tensors are; every tensor ends where "
        "its last part ends\n"
        "  = note: all parts of each tensor are equally long, so that more may have followed\n"
        "  = help: name the model with `--model`, to hold the shapes against its configuration; "
        "give that with `--config DIR` if the folder has no `config.json`"
    ]


def test_what_lies_beside_the_weights_goes_along() -> None:
    folder = sharded(Path("model"), {"model-00001-of-00001.safetensors": {"a": A}})
    config = b'{"model_type": "mamba", "time_step_limit": [0.0, Infinity]}'
    beside = {
        "config.json": config,
        "tokenizer.json": b"\x00\xff not text",
        "1_Pooling/config.json": b"{}",
        "modeling_own.py": b"raise SystemExit\n",
    }
    for name, data in beside.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / ".git").mkdir()
    (folder / ".git/index").write_bytes(b"hidden")
    reshard.convert("model", "out", "universal")
    assert {name: Path("out", name).read_bytes() for name in beside} == beside
    assert not Path("out/.git").exists()
    manifest = json.loads(Path("out/manifest.json").read_text(encoding="ascii"))
    assert beside.keys() <= manifest["files"].keys()
    assert manifest["config"]["time_step_limit"] == [0.0, {"$float": "inf"}]
    reshard.convert("out", "again", "universal")  # and from there on
    assert {name: Path("again", name).read_bytes() for name in beside} == beside


def test_what_is_not_carried_along_is_told() -> None:
    folder = sharded(Path("model"), {"model-00001-of-00001.safetensors": {"a": A}})
    for name in ("optimizer.pt", "model.gguf", "manifest.json", "bad\nname.txt"):
        (folder / name).write_bytes(b"{}")
    found = reshard.inspect(folder)
    assert found.to_text().split("\n\n")[-1] == (
        "not read: 4 files\n"
        "  its name has characters that a path here may not have\n"
        "      bad\\nname.txt\n"
        "  its name is taken in a universal checkpoint\n"
        "      manifest.json\n"
        "  it looks like a file of other tensors, or their index\n"
        "      model.gguf\n"
        "      optimizer.pt"
    )
    [warning] = reshard.convert(folder, "out", "universal").report.warnings
    assert warning.render() == (
        "warning[side-file-left]: 4 files of the source are not copied to the target\n"
        "  = note: its name has characters that a path here may not have: `bad\\nname.txt`\n"
        "  = note: its name is taken in a universal checkpoint: `manifest.json`\n"
        "  = note: it looks like a file of other tensors, or their index: "
        "`model.gguf`, `optimizer.pt`\n"
        "  = help: copy them yourself if you need them"
    )
    record = json.loads(Path("out/manifest.json").read_text(encoding="ascii"))["provenance"][0]
    assert [item["file"] for item in record["left"]] == [item.file for item in found.left]


def test_links_of_the_hubs_cache_are_followed() -> None:
    blobs, snapshot = Path("models--x/blobs"), Path("models--x/snapshots/rev")
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "d1").write_bytes(safetensors({"a": A}))
    (blobs / "d2").write_bytes(b"{}")
    os.symlink("../../blobs/d1", snapshot / "model.safetensors")
    os.symlink("../../blobs/d2", snapshot / "tokenizer.json")
    reshard.convert(str(snapshot), "out", "universal")
    assert Path("out/tokenizer.json").read_bytes() == b"{}"
    same(contents("out"), {"a": A})


def test_torch_files() -> None:
    storage = NewStorage(DType.F32, 12)
    tied = NewTensor(storage, 0, (3, 4), (4, 1))
    turned = NewTensor(storage, 0, (4, 3), (1, 4))
    Path("model").mkdir()
    root = {"a": tied, "b": turned, "c": tied}
    save(Path("model/pytorch_model.bin"), root, {storage: A.tobytes()})
    catalog = read(Path("model"))
    assert catalog.aliases == {"c": "a"}
    same(contents("model"), {"a": A, "b": np.ascontiguousarray(A.T)})
