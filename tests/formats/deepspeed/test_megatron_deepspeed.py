"""Runs of Megatron-DeepSpeed: the arguments in the client state say what the model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed_forge import Run, numbers

import reshard
from reshard.storage.inert import Record

LAYERS, HIDDEN, WIDTH, ROWS = 2, 8, 32, 24
ARGUMENTS = {
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_channels": 4,
    "ffn_hidden_size": WIDTH,
    "max_position_embeddings": 16,
    "vocab_size": 22,
    "padded_vocab_size": ROWS,
    "make_vocab_size_divisible_by": 4,
    "layernorm_epsilon": 1e-5,
    "untie_embeddings_and_output_weights": False,
    "embed_layernorm": False,
    "swiglu": False,
    "bias_gelu_fusion": True,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Of a GPT, by the names of its module."""
    out: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (ROWS, HIDDEN),
        "embedding.position_embeddings.weight": (16, HIDDEN),
    }
    parts = {
        "input_layernorm": (HIDDEN,),
        "self_attention.query_key_value": (3 * HIDDEN, HIDDEN),
        "self_attention.dense": (HIDDEN, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.dense_h_to_4h": (WIDTH, HIDDEN),
        "mlp.dense_4h_to_h": (HIDDEN, WIDTH),
    }
    for layer in range(LAYERS):
        for part, shape in parts.items():
            out[f"encoder.layers.{layer}.{part}.weight"] = shape
            out[f"encoder.layers.{layer}.{part}.bias"] = shape[:1]
    out |= {"encoder.final_layernorm.weight": (HIDDEN,), "encoder.final_layernorm.bias": (HIDDEN,)}
    return {f"language_model.{name}": shape for name, shape in out.items()}


def run(folder: Path, **more: object) -> Path:
    """A run at ZeRO-1 of two ranks."""
    args = Record("argparse", "Namespace", (), "newobj", [{**ARGUMENTS, **more}])
    state: dict[str, Any] = {"args": args, "iteration": 3, "checkpoint_version": 3.0}
    (folder / "run").mkdir()
    return Run(folder / "run", [shapes()], model=state).write()


def test_the_sizes_of_the_model_are_those_of_the_run(tmp_path: Path) -> None:
    source = run(tmp_path)
    done = reshard.convert(source, tmp_path / "hf", "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text()) == {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_embd": HIDDEN,
        "n_head": 2,
        "n_inner": WIDTH,
        "n_layer": LAYERS,
        "n_positions": 16,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": 22,
    }
    (said,) = [item.render() for item in done.report.warnings if item.code == "padded-vocabulary"]
    assert said == (
        "warning[padded-vocabulary]: 2 of 24 rows of the vocabulary are padding\n"
        "  = note: the arguments say `vocab_size=22`; the rows behind it are left out where the "
        "names of a model are wanted\n"
        "  = note: how many there are depends on tp, and they belong to no token"
    )
    found = reshard.open(tmp_path / "hf").read("transformer.wte.weight")
    first = numbers(shapes(), "master")["language_model.embedding.word_embeddings.weight"]
    assert found.reshape(-1).tolist() == first[: 22 * HIDDEN]


def test_the_sizes_go_along_through_other_forms(tmp_path: Path) -> None:
    source = run(tmp_path)
    reshard.convert(source, tmp_path / "hf", "hf")
    for form in ("universal", "deepspeed-universal", "deepspeed:zero=1,dp=1"):
        there = tmp_path / form.partition(":")[0]
        reshard.convert(source, there, form)
        reshard.convert(there, tmp_path / f"{there.name}-hf", "hf")
        made = tmp_path / f"{there.name}-hf"
        for name in ("config.json", "model.safetensors"):
            assert (made / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


def test_facts_of_the_model_in_the_arguments_are_not_ignored(tmp_path: Path) -> None:
    source = run(tmp_path, apply_layernorm_1p=True)
    with pytest.raises(reshard.ReshardError, match="`apply_layernorm_1p` is true"):
        reshard.convert(source, tmp_path / "hf", "hf")
