"""A conversion is planned for a model of which there is only the configuration."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

import reshard
from reshard.errors import ReshardError
from safetensors_files import save

SIZES: dict[str, Any] = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "vocab_size": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the model in transformers' names."""
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (1024, 32)}
    for layer in range(4):
        at = f"model.layers.{layer}"
        out |= {f"{at}.{name}_layernorm.weight": (32,) for name in ("input", "post_attention")}
        for name, rows, columns in (("q", 32, 32), ("k", 16, 32), ("v", 16, 32), ("o", 32, 32)):
            out[f"{at}.self_attn.{name}_proj.weight"] = (rows, columns)
        for name, rows, columns in (("gate", 48, 32), ("up", 48, 32), ("down", 32, 48)):
            out[f"{at}.mlp.{name}_proj.weight"] = (rows, columns)
    return out | {"model.norm.weight": (32,), "lm_head.weight": (1024, 32)}


NUMEL = sum(map(prod, shapes().values()))
TARGETS = ["hf", "megatron:tp=2,pp=2", "megatron-dist", "dcp:dp=4", "nanotron:tp=2,pp=2"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(SIZES), encoding="utf-8")


@pytest.mark.parametrize("to", TARGETS)
def test_the_files_are_those_that_a_conversion_writes(to: str) -> None:
    folder = save(
        Path("model/model.safetensors"),
        {name: ("BF16", shape, bytes(2 * prod(shape))) for name, shape in shapes().items()},
    )
    Path("model/config.json").write_text(json.dumps(SIZES), encoding="utf-8")
    simulated = reshard.simulate("config.json", to, source="hf", states="weights")
    done = reshard.convert(folder, "out", to)
    sizes = {path for group in simulated.target_files for path in group.files}
    assert sizes <= set(done.report.files)
    assert simulated.nbytes_read == done.report.nbytes_read


STORED = ["universal", "deepspeed:zero=1,dp=4", "deepspeed:zero=3,dp=3", "dcp:dp=4", "verl:dp=2"]
STORED += ["megatron:tp=2,pp=2", "megatron-dist", "nanotron:tp=2,dp=2", "torchtitan:dp=2"]


@pytest.mark.parametrize("source", STORED)
def test_a_source_holds_every_state_once(source: str) -> None:
    found = reshard.simulate("config.json", "universal", source=source)
    assert found.parameters == NUMEL
    has_weights = not source.startswith(("deepspeed:zero=3", "dcp", "torchtitan", "verl"))
    wanted = NUMEL * (12 + 2 * has_weights)
    assert wanted <= found.nbytes_read <= 1.01 * wanted  # copies of norms are compared
    assert wanted <= sum(group.nbytes for group in found.source_files)


def test_a_rank_holds_what_a_mesh_says() -> None:
    found = reshard.meshes("config.json", 8)
    chosen = {tuple(item.sizes.values()): item for item in found.possible}
    # On tp=2, pp=2 the last stage holds most: two layers, the norm, and the head.
    layer = 2 * 32 + (32 * 64 + 16 * 64 + 3 * 48 * 32) // 2
    last = 2 * layer + 32 + 1024 * 32 // 2
    mesh = chosen[2, 2, 1, 2]
    assert (mesh.weights, mesh.gradients, mesh.states) == (2 * last, 4 * last, 12 * last // 2)
    assert found.refused == {
        "axis `layer` has 4, which pp=8 does not divide": 1,
        "axis `kv` has 4, which tp=8 does not divide": 1,
    }
    less = reshard.meshes("config.json", 8, memory=mesh.nbytes)
    assert mesh in less.possible
    assert all(item.nbytes <= mesh.nbytes for item in less.possible)
    assert len(less.possible) + less.too_large == len(found.possible)


def test_stages_of_unequal_length_are_asked_for() -> None:
    uneven = reshard.meshes("config.json", 3, places=["layer=pp:balanced"])
    assert [item.sizes["pp"] for item in uneven.possible] == [1, 3]


def test_experts_are_shared_by_fewer_ranks() -> None:
    config = {
        "model_type": "mixtral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "vocab_size": 1024,
    }
    Path("config.json").write_text(json.dumps(config), encoding="utf-8")
    found = reshard.meshes("config.json", 8)
    by_mesh = {tuple(item.sizes.values()): item for item in found.possible}
    experts = 2 * 8 * 3 * 48 * 32
    dense = found.parameters - experts
    mesh = by_mesh[1, 1, 4, 8]
    assert mesh.weights == 2 * (dense + experts // 4)
    assert mesh.states == 12 * (dense // 8 + experts // 8)


def test_a_trillion_parameters_are_counted_from_their_configuration() -> None:
    Path("config.json").write_text('{"model_type": "deepseek_v3"}', encoding="utf-8")
    found = reshard.meshes("config.json", 64, memory=10**9)
    assert found.parameters == 671_026_419_200
    assert not found.possible


REFUSED = {
    "type": (
        {"model_type": "mamba9"},
        "error[no-layout-fits]: no known layout describes models of type `mamba9`\n"
        "  = note: config.json states this type\n"
        "  = note: known models: `bert`, `deepseek`, `gemma`, `gpt`, `llama`, `mixtral`, `olmo2`, "
        "`qwen_moe`\n"
        "  = help: describe the model in a UCL file, and give it with `--layout FILE.ucl`",
    ),
    "size": (
        {"model_type": "kimi_k2", "num_hidden_layers": 4},
        "error[incomplete-model-config]: the configuration does not give everything that model "
        "`deepseek` needs\n"
        "  = note: without a value: `vocab_size`\n"
        "  = help: state it with `--set vocab_size=NUMBER`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_configuration_that_does_not_tell_is_refused(name: str) -> None:
    config, text = REFUSED[name]
    Path("config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ReshardError) as caught:
        reshard.simulate("config.json", "universal")
    assert str(caught.value) == text
