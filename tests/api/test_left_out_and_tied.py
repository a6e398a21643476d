"""Layouts of models with tensors that are no parameters, and with two names for one tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.errors import ReshardError
from safetensors_files import save

LAYOUT = """\
model small {
    axis layer = num_hidden_layers
    axis h     = hidden_size
    axis v     = vocab_size
    tensor embed [v, h]
    tensor up    [layer, h]
    tensor head  [v, h] when not tie_word_embeddings
}

layout hf of small when model_type == "small" {
    config num_hidden_layers, hidden_size, vocab_size, tie_word_embeddings
    tie "lm_head.weight" = "embed.weight" when tie_word_embeddings
    leave out "**.inv_freq" because "the model makes it anew"
    "embed.weight"           = embed[v, h]
    "layers.{layer}.weight"  = up[h]
    "lm_head.weight"         = head[v, h]
}

layout other of small {
    "e.w"         = embed[v, h]
    "b.{layer}.w" = up[h]
    "h.w"         = head[v, h]
}
"""


def source(folder: Path, **more: list[float]) -> Path:
    """A model folder with two layers; further tensors of six elements."""
    tensors = {"embed.weight": [float(x) for x in range(6)], **more}
    layers = {f"layers.{layer}.weight": [layer + 0.5, layer + 0.25] for layer in range(2)}
    stored = {
        name: (
            "F32",
            (len(data) // 2, 2) if len(data) > 2 else (2,),
            struct.pack(f"<{len(data)}f", *data),
        )
        for name, data in {**tensors, **layers}.items()
    }
    model = save(folder / "model" / "model.safetensors", stored)
    sizes = {"num_hidden_layers": 2, "hidden_size": 2, "vocab_size": 3}
    config = {**sizes, "tie_word_embeddings": True, "model_type": "small"}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "small.ucl").write_text(LAYOUT, encoding="utf-8")
    return model


@pytest.mark.parametrize("layout_name", ["hf", None])
def test_tensors_that_are_no_parameters_are_listed(layout_name: str | None, tmp_path: Path) -> None:
    model = source(tmp_path, **{"layers.0.inv_freq": [1.0, 2.0], "layers.1.inv_freq": [1.0, 2.0]})
    opened = reshard.open(model, layout=tmp_path / "small.ucl", layout_name=layout_name)
    assert not any("inv_freq" in name for name in opened.parameters)
    said = reshard.inspect(model, layout=tmp_path / "small.ucl", layout_name=layout_name)
    why = "the model makes it anew"
    assert said.to_json()["left"] == [
        {"file": "model.safetensors", "key": f"layers.{layer}.inv_freq", "why": why}
        for layer in range(2)
    ]


def test_a_tensor_that_is_stored_twice_is_one(tmp_path: Path) -> None:
    model = source(tmp_path, **{"lm_head.weight": [float(x) for x in range(6)]})
    file = tmp_path / "small.ucl"
    reshard.convert(model, tmp_path / "out", "universal", layout=file, names="other")
    assert {*reshard.open(tmp_path / "out").parameters} == {"e.w", "b.0.w", "b.1.w"}
    back = tmp_path / "back"
    reshard.convert(
        tmp_path / "out", back, "universal", layout=file, layout_name="other", names="hf"
    )
    assert reshard.verify(model, back).ok


def test_a_tensor_that_is_stored_once(tmp_path: Path) -> None:
    model = source(tmp_path)
    file = tmp_path / "small.ucl"
    reshard.convert(model, tmp_path / "out", "universal", layout=file, names="other")
    assert {*reshard.open(tmp_path / "out").parameters} == {"e.w", "b.0.w", "b.1.w"}


def test_two_names_with_other_values_are_refused(tmp_path: Path) -> None:
    model = source(tmp_path, **{"lm_head.weight": [9.0] * 6})
    file = tmp_path / "small.ucl"
    with pytest.raises(ReshardError) as caught:
        reshard.convert(model, tmp_path / "out", "universal", layout=file, names="other")
    print(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("moe_ep2_dp2_z1_fp32", "lin.bias"),
        ("autotp_tp2_dp2_z1_fp32", "model.norm.weight"),
        ("megatron_untied_tp2_pp2", "*linear_qkv*"),
    ],
)
def test_an_excluded_tensor_may_be_all_that_a_derived_rule_is_of(
    case: str, name: str, fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = fixture_checkpoint(case)
    folder = folder / "ckpt" if (folder / "ckpt").exists() else folder
    before = reshard.open(folder).parameters
    done = reshard.convert(folder, tmp_path / "out", "universal", leave_out=[name])
    assert "keys-left" in [item.code for item in done.report.warnings]
    after = reshard.open(tmp_path / "out").parameters
    gone = [item for item in before if item not in after]
    assert gone
    assert all(name.strip("*") in item for item in gone)
    assert reshard.verify(folder, tmp_path / "out", leave_out=[name]).ok
