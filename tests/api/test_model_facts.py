"""What a configuration says of the model reaches every target and comes back, or is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from reshard.errors import ReshardError

TARGETS = ["universal", "dcp:dp=2", "megatron:tp=2", "megatron-dist", "nanotron:tp=2"]
TARGETS += ["torchtitan", "olmo-core"]
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def safetensors(tensors: dict[str, Any]) -> bytes:
    """A file as the format lays it out."""
    header, at = {}, 0
    for name, value in tensors.items():
        places = [at, at + value.nbytes]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": places}
        at += value.nbytes
    text = json.dumps(header).encode()
    data = b"".join(value.tobytes() for value in tensors.values())
    return len(text).to_bytes(8, "little") + text + data


def weights(*, fused: bool = False, biased: bool = False, layers: int = 2) -> dict[str, Any]:
    """A tiny Llama, every weight filled with its own numbers."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (16, 8)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
        shapes[f"{at}self_attn.o_proj.weight"] = (8, 8)
        shapes[f"{at}mlp.down_proj.weight"] = (8, 12)
        if fused:
            shapes[f"{at}self_attn.qkv_proj.weight"] = (16, 8)
            shapes[f"{at}mlp.gate_up_proj.weight"] = (24, 8)
            continue
        for name, rows in (("q", 8), ("k", 4), ("v", 4)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, 8)
            if biased:
                shapes[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {f"{at}mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (16, 8)}
    out, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        out[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    return out


def model(kind: str | None, tensors: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    """A folder `model`; returns its configuration."""
    Path("model").mkdir()
    Path("model/model.safetensors").write_bytes(safetensors(tensors or weights()))
    stated = {} if kind is None else {"model_type": kind}
    said = {**stated, "torch_dtype": "float32", **SIZES, **config}
    if kind is not None:
        Path("model/config.json").write_text(json.dumps(said), encoding="utf-8")
    return said


def config_of(folder: str) -> dict[str, Any]:
    value = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def codes(done: Any) -> set[str]:
    return {item.code for item in done.report.warnings}


FACTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_scaling": LLAMA3, "eos_token_id": [1, 2], "bos_token_id": 7}),
    ("llama", {"rope_theta": 1e6, "hidden_act": "gelu", "pretraining_tp": 1, "own_key": {"a": 1}}),
    ("mistral", {"sliding_window": 4}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5}}),
]


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize(("kind", "facts"), FACTS)
def test_every_key_comes_back(kind: str, facts: dict[str, Any], to: str) -> None:
    said = model(kind, **facts)
    reshard.convert("model", "mid", to)
    done = reshard.convert("mid", "back", "hf")
    assert config_of("back") == said
    assert reshard.verify("model", "back").ok
    assert not codes(done) & {"guessed-model", "model-config-changed", "incomplete-model-config"}


@pytest.mark.parametrize("to", TARGETS)
def test_phi3_keeps_its_own_names(to: str) -> None:
    said = model("phi3", weights(fused=True), sliding_window=4)
    reshard.convert("model", "mid", to)
    reshard.convert("mid", "back", "hf")
    assert config_of("back") == said
    assert reshard.verify("model", "back").ok


def test_a_configuration_goes_by_way_of_several_formats() -> None:
    said = model("llama", rope_scaling=LLAMA3)
    before = "model"
    for step, to in enumerate(["megatron:tp=2", "universal", "nanotron", "megatron-dist", "hf"]):
        reshard.convert(before, f"at{step}", to)
        before = f"at{step}"
    assert config_of(before) == said
    assert reshard.verify("model", before).ok


def test_another_element_type_is_said() -> None:
    said = model("llama")
    reshard.convert("model", "mid", "megatron", dtype="bf16")
    reshard.convert("mid", "back", "hf")
    assert config_of("back") == {**said, "torch_dtype": "bfloat16"}


def test_what_the_checkpoint_says_otherwise_is_written_and_told() -> None:
    said = model("llama", max_position_embeddings=64)
    reshard.convert("model", "mid", "megatron")
    path = Path("mid/release/config.json")
    path.write_text(json.dumps({**said, "max_position_embeddings": 32}), encoding="utf-8")
    done = reshard.convert("mid", "back", "hf")
    assert config_of("back")["max_position_embeddings"] == 64
    [warning] = [x for x in done.report.warnings if x.code == "model-config-changed"]
    assert warning.render() == (
        "warning[model-config-changed]: `config.json` and the checkpoint disagree\n"
        "  = note: `max_position_embeddings`: 64 is written, the file says 32\n"
        "  = help: the checkpoint's values are written; check which of the two is right"
    )


# Look-alikes: the names and shapes of Llama, and a type of which no layout is.


@pytest.mark.parametrize("kind", ["gemma", "granite", "smollm3", "olmo3", "ministral"])
def test_a_look_alike_is_not_taken_for_what_it_resembles(kind: str) -> None:
    said = model(kind)
    reshard.convert("model", "mid", "dcp:dp=2")
    done = reshard.convert("mid", "back", "hf")
    assert config_of("back") == said
    assert reshard.verify("model", "back").ok
    assert not codes(done) & {"guessed-model"}
    for source in ("model", "mid"):
        with pytest.raises(ReshardError) as caught:
            reshard.convert(source, "out", "megatron")
        assert caught.value.diagnostics[0].code == "no-layout-fits"
        assert f"`{kind}`" in str(caught.value)


def test_a_class_is_a_type_too() -> None:
    said = model(None)
    text = json.dumps({**said, "architectures": ["GemmaForCausalLM"]})
    Path("model/config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ReshardError) as caught:
        reshard.convert("model", "out", "megatron")
    assert "`GemmaForCausalLM`" in str(caught.value)


def test_the_user_knows_better() -> None:
    model("granite")
    reshard.convert("model", "mid", "megatron", model="llama")
    assert reshard.open("mid").mesh


def test_a_model_that_nothing_states_is_a_guess() -> None:
    model(None)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    done = reshard.convert("model", "mid", "megatron", settings=heads)
    [warning] = [x for x in done.report.warnings if x.code == "guessed-model"]
    assert warning.render() == (
        "warning[guessed-model]: the source does not record its model; by its names it is read as "
        "`llama`\n"
        "  = note: other models may have the same names and shapes and compute something "
        "different\n"
        "  = help: if that is right, confirm it with `--model llama`"
    )
    done = reshard.convert("model", "out", "megatron", settings=heads, model="llama")
    assert "guessed-model" not in codes(done)


def test_a_size_that_a_framework_derives() -> None:
    said = {"head_dim": 4, "hidden_size": 8}
    tensors = weights()
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn."
        for name, rows in (("q", 16), ("k", 8), ("v", 8)):
            tensors[f"{at}{name}_proj.weight"] = np.zeros((rows, 8), np.float32)
        tensors[f"{at}o_proj.weight"] = np.zeros((8, 16), np.float32)
    model("llama", tensors, **said)
    with pytest.raises(ReshardError) as caught:
        reshard.convert("model", "out", "nanotron")
    assert str(caught.value) == (
        "error[other-facts]: layout `nanotron` is of models where `head_dim` is 2, and here it is "
        "4\n"
        "  = note: it derives the size: hidden_size / num_attention_heads\n"
        "  = note: read with layout `hf`\n"
        "  = help: convert to another framework; this one has no such models"
    )
    reshard.convert("model", "out", "megatron")


def test_a_round_trip_that_loses_keys_is_not_proved() -> None:
    model("llama", rope_scaling=LLAMA3)
    proof = reshard.roundtrip("model", via=["megatron:tp=2"], strict=True)
    assert proof.ok, proof.to_text()
    path = Path("model/config.json")
    for way in ("nanotron:tp=2", "dcp:dp=2"):
        assert reshard.roundtrip("model", via=[way], strict=True).ok
    assert json.loads(path.read_text(encoding="utf-8"))["rope_scaling"] == LLAMA3
