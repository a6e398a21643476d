"""Models that do not ship, described by files of users: to ranks of Megatron and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import pytest

import reshard
from safetensors_files import read, save

FAMILIES = Path(__file__).with_name("families")

LAYERS = range(4)

ATTENTION = {
    "self_attn.q_proj.weight": (32, 32),
    "self_attn.k_proj.weight": (16, 32),
    "self_attn.v_proj.weight": (16, 32),
    "self_attn.o_proj.weight": (32, 32),
}

SIZES = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}

FALCON = {
    "model_type": "falcon",
    **SIZES,
    "ffn_hidden_size": 128,
    "bias": False,
    "layer_norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}

GPTOSS = {
    "model_type": "gpt_oss",
    **SIZES,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "tie_word_embeddings": False,
}

QWEN3NEXT = {
    "model_type": "qwen3_next",
    **SIZES,
    "layer_types": [
        "linear_attention",
        "full_attention",
        "full_attention",
        "linear_attention",
    ],
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

LLAVA = {
    "model_type": "llava",
    "text_config": {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_size": 32,
        "intermediate_size": 48,
        "vocab_size": 100,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_channels": 3,
        "patch_size": 8,
    },
}

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def falcon(groups: int, norms: tuple[str, ...]) -> Shapes:
    yield "transformer.word_embeddings.weight", (100, 32)
    for i in LAYERS:
        at = f"transformer.h.{i}."
        for norm in norms:
            yield f"{at}{norm}.weight", (32,)
            yield f"{at}{norm}.bias", (32,)
        yield f"{at}self_attention.query_key_value.weight", ((4 + 2 * groups) * 8, 32)
        yield f"{at}self_attention.dense.weight", (32, 32)
        yield f"{at}mlp.dense_h_to_4h.weight", (128, 32)
        yield f"{at}mlp.dense_4h_to_h.weight", (32, 128)
    yield "transformer.ln_f.weight", (32,)
    yield "transformer.ln_f.bias", (32,)


def decoder(prefix: str = "", head: str = "lm_head.weight") -> Shapes:
    yield f"{prefix}model.embed_tokens.weight", (100, 32)
    yield f"{prefix}model.norm.weight", (32,)
    yield f"{prefix}{head}", (100, 32)
    for i in LAYERS:
        yield f"{prefix}model.layers.{i}.input_layernorm.weight", (32,)
        yield f"{prefix}model.layers.{i}.post_attention_layernorm.weight", (32,)


def gptoss() -> Shapes:
    yield from decoder()
    for i in LAYERS:
        at = f"model.layers.{i}."
        for name, shape in ATTENTION.items():
            yield at + name, shape
            yield at + name.replace("weight", "bias"), shape[:1]
        yield f"{at}self_attn.sinks", (4,)
        yield f"{at}mlp.router.weight", (4, 32)
        yield f"{at}mlp.router.bias", (4,)
        yield f"{at}mlp.experts.gate_up_proj", (4, 32, 96)
        yield f"{at}mlp.experts.gate_up_proj_bias", (4, 96)
        yield f"{at}mlp.experts.down_proj", (4, 48, 32)
        yield f"{at}mlp.experts.down_proj_bias", (4, 32)


def qwen3next() -> Shapes:
    yield from decoder()
    for i in LAYERS:
        at = f"model.layers.{i}."
        if i in (1, 2):
            for name, shape in ATTENTION.items():
                yield at + name, (64, 32) if "q_proj" in name else shape
            yield f"{at}self_attn.q_norm.weight", (8,)
            yield f"{at}self_attn.k_norm.weight", (8,)
        else:
            yield f"{at}linear_attn.in_proj_qkvz.weight", (96, 32)
            yield f"{at}linear_attn.in_proj_ba.weight", (8, 32)
            yield f"{at}linear_attn.conv1d.weight", (64, 1, 4)
            yield f"{at}linear_attn.A_log", (4,)
            yield f"{at}linear_attn.dt_bias", (4,)
            yield f"{at}linear_attn.norm.weight", (8,)
            yield f"{at}linear_attn.out_proj.weight", (32, 32)
        yield f"{at}mlp.gate.weight", (4, 32)
        yield f"{at}mlp.shared_expert_gate.weight", (1, 32)
        for expert in (*(f"experts.{e}" for e in range(4)), "shared_expert"):
            yield f"{at}mlp.{expert}.gate_proj.weight", (16, 32)
            yield f"{at}mlp.{expert}.up_proj.weight", (16, 32)
            yield f"{at}mlp.{expert}.down_proj.weight", (32, 16)


def llava() -> Shapes:
    yield from decoder("language_model.")
    for i in LAYERS:
        at = f"language_model.model.layers.{i}."
        for name, shape in ATTENTION.items():
            yield at + name, shape
        yield f"{at}mlp.gate_proj.weight", (48, 32)
        yield f"{at}mlp.up_proj.weight", (48, 32)
        yield f"{at}mlp.down_proj.weight", (32, 48)
    for name, shape in {"linear_1": (32, 24), "linear_2": (32, 32)}.items():
        yield f"multi_modal_projector.{name}.weight", shape
        yield f"multi_modal_projector.{name}.bias", shape[:1]
    yield "vision_tower.embeddings.class_embedding", (24,)
    yield "vision_tower.embeddings.patch_embedding.weight", (24, 3, 8, 8)
    yield "vision_tower.embeddings.position_embedding.weight", (5, 24)
    parts = dict.fromkeys((f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), (24, 24))
    norms = [f"encoder.layers.{i}.layer_norm{n}" for i in (0, 1) for n in (1, 2)]
    for norm in ("pre_layrnorm", "post_layernorm", *norms):
        yield f"vision_tower.{norm}.weight", (24,)
        yield f"vision_tower.{norm}.bias", (24,)
    for i in (0, 1):
        for name, shape in {**parts, "mlp.fc1": (40, 24), "mlp.fc2": (24, 40)}.items():
            yield f"vision_tower.encoder.layers.{i}.{name}.weight", shape
            yield f"vision_tower.encoder.layers.{i}.{name}.bias", shape[:1]


CASES = {
    "falcon-40b": (
        "falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        lambda: falcon(2, ("ln_attn", "ln_mlp")),
        "tp=2,pp=2",
    ),
    "falcon-7b": (
        "falcon",
        FALCON | {"new_decoder_architecture": False, "multi_query": True},
        lambda: falcon(1, ("input_layernorm",)),
        "pp=2",
    ),
    "gpt-oss": ("gptoss", GPTOSS, gptoss, "tp=2,pp=2,ep=2"),
    "qwen3-next": ("qwen3next", QWEN3NEXT, qwen3next, "tp=2,pp=2,ep=2"),
    "llava": ("llava", LLAVA, llava, "tp=2,pp=2"),
}


def made(case: str, folder: Path) -> tuple[Path, str, Path]:
    """A folder of a small model in bf16, its description, and the target."""
    family, config, shapes, size = CASES[case]
    rng = np.random.default_rng(7)
    tensors = {name: ("BF16", shape, rng.bytes(2 * prod(shape))) for name, shape in shapes()}
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, f"megatron:{size}", FAMILIES / f"{family}.ucl"


@pytest.mark.parametrize("case", CASES)
def test_a_family_that_does_not_ship_goes_to_ranks_and_back(case: str, tmp_path: Path) -> None:
    source, target, layout = made(case, tmp_path / "hf")
    weights = read(source / "model.safetensors")
    reshard.convert(source, tmp_path / "ranks", target, layout=layout)
    back = tmp_path / "back"
    reshard.convert(tmp_path / "ranks", back, "hf", layout=layout)
    assert read(back / "model.safetensors") == weights

    # The arguments of Megatron alone tell the model, too.
    (tmp_path / "ranks" / "release" / "config.json").unlink()
    again = tmp_path / "again"
    reshard.convert(tmp_path / "ranks", again, "hf", layout=layout)
    assert read(again / "model.safetensors") == weights
    told = json.loads((again / "config.json").read_text())
    told.pop("torch_dtype")
    assert told == CASES[case][1]


def settings_left(case: str, folder: Path, config: dict[str, object]) -> tuple[str, ...]:
    """What a warning lists that Megatron cannot store."""
    source, target, layout = made(case, folder / "hf")
    (source / "config.json").write_text(json.dumps(config))
    done = reshard.convert(source, folder / "ranks", target, layout=layout)
    found = [item for item in done.report.warnings if item.code == "model-facts-left"]
    return found[0].notes if found else ()


@pytest.mark.parametrize(
    ("kinds", "notes"),
    [
        (
            ["sliding_attention", "full_attention"] * 2,
            (
                '`layer_types` is ["sliding_attention", "full_attention", "sliding_attention",...',
                "`sliding_window` is 128",
            ),
        ),
        (["full_attention"] * 4, ()),
        (["sliding_attention"] * 4, ()),
        (
            ["chunked_attention"] * 4,
            ('`layer_types` is ["chunked_attention", "chunked_attention", "chunked_attentio...',),
        ),
    ],
)
def test_what_each_layer_attends_to_is_a_setting(
    kinds: list[str], notes: tuple[str, ...], tmp_path: Path
) -> None:
    config = GPTOSS | {"layer_types": kinds, "sliding_window": 128}
    assert settings_left("gpt-oss", tmp_path, config) == notes


def test_of_a_group_of_settings_those_that_are_left_are_listed(tmp_path: Path) -> None:
    text = {**LLAVA["text_config"], "clip_qkv": 8, "use_cache": False, "rope_scaling": None}
    vision = {**LLAVA["vision_config"], "hidden_act": "quick_gelu"}
    config = LLAVA | {"text_config": text, "vision_config": vision, "other_config": {"depth": 3}}
    assert settings_left("llava", tmp_path, config) == (
        "`text_config.clip_qkv` is 8",
        '`vision_config.hidden_act` is "quick_gelu"',
        '`other_config` is {"depth": 3}',
    )


CHOICE = """
model choice {
    axis layer = num_hidden_layers
    axis kv    = groups
    axis h     = hidden_size
    tensor a [layer, kv, h]
    tensor b [layer, h] when newer
}

layout hf of choice when model_type == "choice" {
    config num_hidden_layers = num_hidden_layers
    config groups            = num_kv_heads if new_architecture else 1
    config hidden_size       = hidden_size
    config newer             = new_architecture

    "a.{layer}" = a[kv, h]
    "b.{layer}" = b[h]
}

layout megatron of choice {
    mesh pp, tp
    place layer over pp
    place kv over tp
    config num_hidden_layers = args.num_layers
    config groups            = args.num_query_groups
    config hidden_size       = args.hidden_size

    "decoder.layers.{local layer}.a" = a[kv, h]
    "decoder.layers.{local layer}.b" = b[h]
}
"""


def test_a_size_of_which_another_line_says_where_it_stands_is_written(tmp_path: Path) -> None:
    layout = tmp_path / "choice.ucl"
    layout.write_text(CHOICE)
    told = {
        "model_type": "choice",
        "num_hidden_layers": 2,
        "num_kv_heads": 4,
        "hidden_size": 2,
        "new_architecture": True,
    }
    tensors = {f"a.{i}": ("U8", (4, 2), bytes(range(8))) for i in (0, 1)}
    tensors |= {f"b.{i}": ("U8", (2,), b"xy") for i in (0, 1)}
    source = save(tmp_path / "hf" / "model.safetensors", tensors)
    (source / "config.json").write_text(json.dumps(told))
    reshard.convert(source, tmp_path / "ranks", "megatron:tp=2,pp=2", layout=layout)
    (tmp_path / "ranks" / "release" / "config.json").unlink()
    reshard.convert(tmp_path / "ranks", tmp_path / "back", "hf", layout=layout)
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written.items() >= told.items()


def test_an_axis_of_one_is_not_cut(tmp_path: Path) -> None:
    source, _, layout = made("falcon-7b", tmp_path / "hf")
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.convert(source, tmp_path / "ranks", "megatron:tp=2,pp=2", layout=layout)
    assert str(caught.value).endswith("= help: an axis of one cannot be cut: choose tp=1")
