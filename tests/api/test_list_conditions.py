"""Layers of several kinds, which a list of the configuration or the stored names tell apart."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

import pytest

import reshard
from reshard.errors import ReshardError
from safetensors_files import save

MODEL = """\
model mixed {{
    axis layer = num_hidden_layers
    axis n     = num_attention_heads
    axis d     = head_dim
    axis h     = hidden_size
    axis c     = conv_width
    axis v     = vocab_size

    tensor embed [v, h]
    tensor norm  [layer, h]
    tensor wq    [layer, n, d, h] when {full}
    tensor conv  [layer, n, c] when {linear}
}}

layout hf of mixed when model_type == "mixed" {{
    config num_hidden_layers, num_attention_heads, hidden_size, conv_width, vocab_size, {name}
    config head_dim = hidden_size / num_attention_heads if halves else hidden_size
    config halves
    "embed.weight" = embed[v, h]
    under "layers.{{layer}}." {{
        "norm.weight"   = norm[h]
        "q_proj.weight" = wq[n d, h]
        "conv.weight"   = conv[n, c]
    }}
}}

layout megatron of mixed {{
    mesh pp, tp, ep, dp
    place layer over pp
    place n over tp
    place v over tp padded to a multiple of 4 * tp
    config num_hidden_layers   = args.num_layers
    config num_attention_heads = args.num_attention_heads
    config hidden_size         = args.hidden_size
    config head_dim            = args.kv_channels
    config vocab_size          = args.vocab_size
    "embedding.word_embeddings.weight" = embed[v, h] on first stage
    under "decoder.layers.{{local layer}}." {{
        "input_layernorm.weight" = norm[h]
        "attention.q.weight"     = wq[n d, h]
        "mixer.conv.weight"      = conv[n, c]
    }}
}}
"""
KINDS = {
    "items": {
        "full": 'layer_types[layer] == "full"',
        "linear": 'layer_types[layer] == "linear"',
        "name": "layer_types",
    },
    "members": {
        "full": "layer in attn_layers",
        "linear": "layer not in attn_layers",
        "name": "attn_layers",
    },
}
LISTS: Mapping[str, object] = {
    "layer_types": ["linear", "full", "full", "linear"],
    "attn_layers": [1, 2],
}
SIZES = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 4, "conv_width": 3}


def source(folder: Path, kind: str, full: tuple[int, ...] = (1, 2)) -> tuple[Path, Path]:
    """A model folder, every element another number, and its layouts."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (6, 4)}
    for layer in range(4):
        shapes[f"layers.{layer}.norm.weight"] = (4,)
        if layer in full:
            shapes[f"layers.{layer}.q_proj.weight"] = (4, 4)
        else:
            shapes[f"layers.{layer}.conv.weight"] = (2, 3)
    at, tensors = 0, {}
    for name, shape in shapes.items():
        data = struct.pack(f"<{prod(shape)}f", *range(at, at + prod(shape)))
        tensors[name] = "F32", shape, data
        at += prod(shape)
    model = save(folder / "model" / "model.safetensors", tensors)
    name = KINDS[kind]["name"]
    config = {**SIZES, "vocab_size": 6, "halves": True, "model_type": "mixed", name: LISTS[name]}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    file = folder / "mixed.ucl"
    file.write_text(MODEL.format(**KINDS[kind]), encoding="utf-8")
    return model, file


@pytest.mark.parametrize("kind", KINDS)
def test_to_megatron_and_back_and_the_names_tell_the_list(kind: str, tmp_path: Path) -> None:
    model, file = source(tmp_path, kind)
    ranks, back = tmp_path / "ranks", tmp_path / "back"
    reshard.convert(model, ranks, "megatron:tp=2,pp=2", layout=file)
    reshard.convert(ranks, back, "hf", layout=file, names="hf")
    assert reshard.verify(model, back).ok
    config = json.loads((back / "config.json").read_text("utf-8"))
    name = KINDS[kind]["name"]
    assert config[name] == LISTS[name]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_the_list_does_not_say_are_refused(kind: str, tmp_path: Path) -> None:
    model, file = source(tmp_path, kind, full=(1, 3))
    with pytest.raises(ReshardError) as caught:
        reshard.convert(model, tmp_path / "out", "megatron:tp=1", layout=file, layout_name="hf")
    assert not (tmp_path / "out").exists()
    assert caught.value.diagnostics[0].code == "indexed-atom"


def test_a_list_that_is_too_short(tmp_path: Path) -> None:
    model, file = source(tmp_path, "items")
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["layer_types"] = ["linear", "full"]
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(model, tmp_path / "out", "universal", layout=file, layout_name="hf")
    assert caught.value.diagnostics[0].code == "no-such-item"
