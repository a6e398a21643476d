"""transformers loads what was made of folders as hubs hold them: all weights, the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from framework import HERE, run_framework

import reshard
from reshard.dtypes import DType
from torch_files import Tensor, saved_legacy

pytestmark = [pytest.mark.interop, pytest.mark.covers("transformers", "read", "write")]

SCRIPT = str(HERE / "transformers_models.py")
EQUAL = {"missing": [], "unexpected": [], "different": [], "logits": True}
MODELS = ("llama", "llama+tied", "qwen2+tied", "gpt2+tied")


def _without_flag(model: Path, folder: Path) -> Path:
    """Whether weights are tied is not said; transformers' types differ in what they take for it."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _old_torch_file(model: Path, folder: Path) -> Path:
    """The file format of torch before 1.6."""
    shutil.copytree(model, folder)
    for item in folder.glob("*.safetensors*"):
        item.unlink()
    checkpoint = reshard.open(model)
    tree = {}
    for name in checkpoint.tensors:
        array = checkpoint.read(name)
        tree[name] = Tensor(DType.F32, array.shape, array.tobytes())
    (folder / "pytorch_model.bin").write_bytes(saved_legacy(tree, folder.parent))
    return folder


def _cached(model: Path, folder: Path) -> Path:
    """The root of a model in the hub's cache."""
    for name in ("blobs", "refs", "snapshots/abc"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    for number, item in enumerate(sorted(model.iterdir())):
        shutil.copy(item, folder / "blobs" / str(number))
        (folder / "snapshots" / "abc" / item.name).symlink_to(f"../../blobs/{number}")
    return folder


def test_hub_folders_keep_logits(interop_python: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    run_framework([str(interop_python), SCRIPT, "make", str(models), *MODELS], tmp_path)
    pairs = {}
    for model in MODELS:
        for way in (_without_flag, _old_torch_file, _cached):
            out = tmp_path / f"{model}.{way.__name__}.out"
            source = way(models / model, tmp_path / f"{model}.{way.__name__}")
            done = reshard.convert(source, out, "hf")
            assert done.next_step.startswith("transformers loads it")
            pairs[str(out)] = str(models / model)
    report = tmp_path / "report.json"
    told = [f"{out}={model}" for out, model in pairs.items()]
    run_framework([str(interop_python), SCRIPT, "check", str(report), *told], tmp_path)
    assert json.loads(report.read_text(encoding="utf-8")) == dict.fromkeys(pairs, EQUAL)


@pytest.mark.parametrize("between", ["universal", "dcp"])
def test_models_without_a_layout_come_back(
    interop_python: Path, tmp_path: Path, between: str
) -> None:
    names = ("t5", "t5+tied", "bart+tied", "clip")
    models = tmp_path / "models"
    run_framework([str(interop_python), SCRIPT, "make", str(models), *names], tmp_path)
    pairs = {}
    for name in names:
        reshard.convert(models / name, tmp_path / f"{name}.between", between)
        out = tmp_path / f"{name}.out"
        done = reshard.convert(tmp_path / f"{name}.between", out, "hf")
        assert done.next_step.startswith("transformers loads it")
        pairs[str(out)] = str(models / name)
    report = tmp_path / "report.json"
    told = [f"{out}={model}" for out, model in pairs.items()]
    run_framework([str(interop_python), SCRIPT, "check", str(report), *told], tmp_path)
    assert json.loads(report.read_text(encoding="utf-8")) == dict.fromkeys(pairs, EQUAL)
