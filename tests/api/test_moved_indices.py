"""Layers that are counted behind others in the names: those that predict further tokens."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import pytest

import reshard
from reshard.errors import ReshardError
from reshard.language.pattern import NamePattern
from safetensors_files import save

LAYOUTS = """\
model deep {
    axis layer = num_hidden_layers
    axis mtp   = num_nextn_predict_layers
    axis h     = hidden_size
    axis two   = 2
    tensor norm     [layer, h]
    tensor mtp_norm [mtp, h]
    tensor mtp_proj [mtp, h, two]
}

layout hf of deep when model_type == "deep" {
    config num_hidden_layers, num_nextn_predict_layers, hidden_size
    "model.layers.{layer}.norm.weight" = norm[h]
    under "model.layers.{mtp + num_hidden_layers}." {
        "norm.weight"    = mtp_norm[h]
        "eh_proj.weight" = mtp_proj[h, two]
    }
}

layout apart of deep {
    config num_hidden_layers        = n
    config num_nextn_predict_layers = m
    "decoder.{layer}.norm"  = norm[h]
    "mtp.{mtp}.norm"        = mtp_norm[h]
    "mtp.{mtp}.proj"        = mtp_proj[h, two]
}
"""


def source(folder: Path, layers: int = 11) -> Path:
    """A model folder with some layers and two that predict further tokens."""
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{layer}.norm.weight": (3,) for layer in range(layers + 2)
    }
    shapes |= {f"model.layers.{layers + k}.eh_proj.weight": (3, 2) for k in range(2)}
    at, tensors = 0, {}
    for name, shape in shapes.items():
        data = struct.pack(f"<{prod(shape)}f", *range(at, at + prod(shape)))
        tensors[name] = "F32", shape, data
        at += prod(shape)
    model = save(folder / "model" / "model.safetensors", tensors)
    config = {"num_hidden_layers": 11, "num_nextn_predict_layers": 2, "hidden_size": 3}
    text = json.dumps({**config, "model_type": "deep"})
    (model / "config.json").write_text(text, encoding="utf-8")
    (folder / "deep.ucl").write_text(LAYOUTS, encoding="utf-8")
    return model


def test_there_and_back(tmp_path: Path) -> None:
    model, file = source(tmp_path), tmp_path / "deep.ucl"
    reshard.convert(model, tmp_path / "apart", "universal", layout=file, names="apart")
    names = reshard.open(tmp_path / "apart").parameters
    assert {"decoder.10.norm", "mtp.0.norm", "mtp.1.proj"} <= {*names}
    assert "decoder.11.norm" not in names
    stored = reshard.open(model).read("model.layers.12.eh_proj.weight", "param")
    moved = reshard.open(tmp_path / "apart").read("mtp.1.proj", "param")
    assert moved.tobytes() == stored.tobytes()
    back = tmp_path / "back"
    reshard.convert(tmp_path / "apart", back, "hf", layout=file, names="hf")
    assert reshard.verify(model, back).ok


def test_another_number_of_layers_than_the_configuration_says(tmp_path: Path) -> None:
    model, file = source(tmp_path, layers=12), tmp_path / "deep.ucl"
    with pytest.raises(ReshardError):
        reshard.convert(model, tmp_path / "out", "universal", layout=file, names="apart")
    assert not (tmp_path / "out").exists()


def test_an_index_that_is_moved_and_counted_on_each_rank() -> None:
    with pytest.raises(ReshardError) as caught:
        NamePattern.parse("x.{local mtp + n}.y")
    assert str(caught.value) == (
        "error[name-pattern]: `{local mtp + n}` is no index of a name\n"
        "  = help: an index that starts behind others counts through all ranks: `{mtp + n}`"
    )
