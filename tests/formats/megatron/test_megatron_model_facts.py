"""Arguments that change what the model computes reach `config.json`, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import namespace, save

import reshard
from reshard.errors import ReshardError

ARGS: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 8,
    "ffn_hidden_size": 12,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "group_query_attention": True,
    "kv_channels": 2,
    "vocab_size": 16,
    "padded_vocab_size": 16,
    "make_vocab_size_divisible_by": 16,
    "max_position_embeddings": 64,
    "untie_embeddings_and_output_weights": True,
    "swiglu": True,
    "normalization": "RMSNorm",
    "norm_epsilon": 1e-5,
    "rotary_base": 10000,
    "position_embedding_type": "rope",
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "num_experts": None,
    "lr": 1e-4,
    "tensorboard_dir": "runs",
}
AT = "decoder.layers.0."
SHAPES = {
    "embedding.word_embeddings.weight": (16, 8),
    f"{AT}input_layernorm.weight": (8,),
    f"{AT}self_attention.linear_qkv.weight": (16, 8),
    f"{AT}self_attention.linear_proj.weight": (8, 8),
    f"{AT}pre_mlp_layernorm.weight": (8,),
    f"{AT}mlp.linear_fc1.weight": (24, 8),
    f"{AT}mlp.linear_fc2.weight": (8, 12),
    "decoder.final_layernorm.weight": (8,),
    "output_layer.weight": (16, 8),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(
    more: Mapping[str, tuple[int, ...]] | None = None, *, without: str = " ", **args: Any
) -> None:
    """A run of one rank in the folder `run`.

    Args:  more: shapes of tensors that it stores besides those of a Llama.
           without: what is in no name of those of a Llama that it stores.
    """
    tensors, start = {}, 0
    llama = {name: shape for name, shape in SHAPES.items() if without not in name}
    for name, shape in {**llama, **(more or {})}.items():
        size = int(np.prod(shape))
        tensors[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    root = {
        "args": namespace(**{**ARGS, **args}),
        "checkpoint_version": 3.0,
        "iteration": 3,
        "model": tensors,
    }
    save(Path("run/iter_0000003/mp_rank_00/model_optim_rng.pt"), root)
    Path("run/latest_checkpointed_iteration.txt").write_text("3", encoding="utf-8")


def config(to: str = "hf") -> dict[str, Any]:
    reshard.convert("run", "out", to)
    value = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def test_a_plain_run_makes_a_whole_configuration() -> None:
    run()
    assert config() == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": 2,
        "hidden_size": 8,
        "intermediate_size": 12,
        "max_position_embeddings": 64,
        "mlp_bias": False,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": 16,
    }


REFUSED: list[dict[str, Any]] = [
    {"apply_layernorm_1p": True},
    {"layernorm_zero_centered_gamma": True},
    {"rotary_percent": 0.5},
    {"no_rope_freq": 4},
    {"no_rope_freq": [0, 1]},
    {"position_embedding_type": "none"},
    {"squared_relu": True},
    {"apply_residual_connection_post_layernorm": True},
    {"softmax_type": "learnable"},
    {"softmax_scale": 0.5},
    {"qk_l2_norm": True},
    {"window_size": (4, 4)},
    {"window_size": (4, 0), "window_attn_skip_freq": 2},
    {"use_mup": True},
]


@pytest.mark.parametrize("args", REFUSED, ids=str)
@pytest.mark.parametrize("to", ["hf", "nanotron"])
def test_what_transformers_cannot_say_is_refused_by_name(args: dict[str, Any], to: str) -> None:
    run(**args)
    with pytest.raises(ReshardError) as caught:
        reshard.convert("run", "out", to)
    assert caught.value.diagnostics[0].code == "other-facts"
    name, value = next(iter(args.items()))
    shown = json.dumps(value)
    assert f"= note: `{name}` is {shown}" in str(caught.value)
    assert not Path("out").exists()
    reshard.convert("run", "other", "megatron")  # its own arguments keep it


def test_the_whole_text_of_a_refusal() -> None:
    run(apply_layernorm_1p=True)
    with pytest.raises(ReshardError) as caught:
        reshard.convert("run", "out", "hf")
    assert str(caught.value) == (
        "error[other-facts]: the run's arguments change what the model computes, and layout "
        "`megatron` cannot state them\n"
        "  = note: `apply_layernorm_1p` is true\n"
        "  = help: convert to `universal` or to `megatron`, which keep the arguments; reshard "
        "knows no other layout for such a model"
    )


LAYER = {name: shape for name, shape in SHAPES.items() if name.startswith(AT)}
LAYER = {name: shape for name, shape in LAYER.items() if "linear_fc" not in name}
LAYER |= {f"{AT}self_attention.{part}_layernorm.weight": (2,) for part in "qk"}
LAYER |= {f"{AT}mlp.router.weight": (2, 8)}
LAYER |= {f"{AT}mlp.experts.linear_fc1.weight{e}": (24, 8) for e in range(2)}
LAYER |= {f"{AT}mlp.experts.linear_fc2.weight{e}": (8, 12) for e in range(2)}
EXPERTS = {
    name.replace(".0.", f".{layer}."): shape for layer in range(2) for name, shape in LAYER.items()
}


@pytest.mark.parametrize(
    ("name", "value"),
    [("moe_router_score_function", "sigmoid"), ("moe_router_topk_scaling_factor", 2.5)],
)
def test_what_only_another_type_of_the_family_can_say_is_refused(name: str, value: object) -> None:
    """The layout of the run says it, for GLM-4.5; transformers' `qwen3_moe` has no key for it."""
    plain = {"num_experts": 2, "moe_router_topk": 1, "moe_ffn_hidden_size": 12, "num_layers": 2}
    run(EXPERTS, without="linear_fc", **plain, qk_layernorm=True, **{name: value})
    with pytest.raises(ReshardError) as caught:
        reshard.convert("run", "out", "hf")
    assert str(caught.value) == (
        "error[other-facts]: the run's arguments change what the model computes, and layout "
        "`hf` cannot state them\n"
        f"  = note: `{name}` is {json.dumps(value)}\n"
        "  = help: convert to `universal` or to `megatron`, which keep the arguments; reshard "
        "knows no other layout for such a model"
    )


def test_scaled_positions_are_translated() -> None:
    run(use_rope_scaling=True, rope_scaling_factor=32.0)
    assert config()["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def given(**config: Any) -> tuple[dict[str, Any], list[str]]:
    """What becomes of a `config.json` that the user gives for the run, and the warnings of it."""
    plain = config_without_types()
    Path("given").mkdir()
    Path("given/config.json").write_text(json.dumps({**plain, **config}), encoding="utf-8")
    done = reshard.convert("run", "out", "hf", config="given")
    found = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    warnings = [x for x in done.report.warnings if x.code == "model-config-changed"]
    return found, [note for item in warnings for note in item.notes]


def config_without_types() -> dict[str, Any]:
    reshard.convert("run", "plain", "hf")
    found = json.loads(Path("plain/config.json").read_text(encoding="utf-8"))
    found.pop("rope_scaling", None)
    assert isinstance(found, dict)
    return found


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_a_given_configuration_that_agrees_is_kept() -> None:
    run(use_rope_scaling=True, rope_scaling_factor=32.0)
    found, notes = given(rope_scaling=LLAMA3, rms_norm_eps=1e-5)
    assert (found["rope_scaling"], notes) == (LLAMA3, [])


@pytest.mark.parametrize(
    ("args", "config", "key", "written"),
    [
        ({"norm_epsilon": 1e-5}, {"rms_norm_eps": 0.5}, "rms_norm_eps", 1e-5),
        ({"use_rope_scaling": False}, {"rope_scaling": LLAMA3}, "rope_scaling", None),
        ({"use_rope_scaling": True, "rope_scaling_factor": 32.0}, {}, "rope_scaling", LLAMA3),
        ({"rotary_seq_len_interpolation_factor": 4}, {"rope_scaling": LLAMA3}, "rope_scaling", {}),
        (
            {"window_size": None},
            {"model_type": "mistral", "sliding_window": 4},
            "sliding_window",
            None,
        ),
    ],
    ids=str,
)
def test_arguments_go_before_a_given_configuration_and_the_difference_is_said(
    args: dict[str, Any], config: dict[str, Any], key: str, written: Any
) -> None:
    run(**args)
    found, notes = given(**config)
    assert len(notes) == 1
    assert notes[0].startswith(f"`{key}`: ")
    if written == {}:
        assert {k: v for k, v in found[key].items() if v is not None} == {
            "rope_type": "linear",
            "factor": 4,
        }
    elif key == "rope_scaling" and written is None:
        assert found[key] == {"rope_type": "default"}
    else:
        assert found[key] == written


def test_interpolated_positions_are_translated() -> None:
    run(rotary_seq_len_interpolation_factor=4)
    assert config()["rope_scaling"] == {"rope_type": "linear", "factor": 4}


def test_a_window_makes_a_type_that_has_one() -> None:
    run(window_size=(8, 0))
    found = config()
    assert (found["model_type"], found["sliding_window"]) == ("mistral", 9)
    assert found["architectures"] == ["MistralForCausalLM"]


def test_a_translated_fact_goes_by_way_of_universal() -> None:
    run(use_rope_scaling=True, rope_scaling_factor=32.0)
    reshard.convert("run", "between", "universal")
    reshard.convert("between", "out", "hf")
    found = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert found["rope_scaling"]["factor"] == 32.0


def test_arguments_of_a_fork_are_told() -> None:
    run(my_scale=0.5, my_flag=False)
    done = reshard.convert("run", "out", "hf")
    [warning] = [item for item in done.report.warnings if item.code == "unknown-arguments"]
    assert warning.render() == (
        "warning[unknown-arguments]: 1 argument of the run is not known to Megatron\n"
        "  = note: `my_scale` is 0.5\n"
        "  = help: check whether it changes what the model computes; it is not converted"
    )


# The other way: transformers' words become arguments.


def arguments(**facts: Any) -> dict[str, Any]:
    run()
    reshard.convert("run", "model", "hf")
    path = Path("model/config.json")
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**said, **facts}), encoding="utf-8")
    done = reshard.convert("model", "there", "megatron")
    reshard.convert("there", "universal", "universal")
    told = json.loads(Path("universal/manifest.json").read_text(encoding="utf-8"))
    args = told["config"]["args"]
    assert isinstance(args, dict)
    args["left"] = [item for item in done.report.warnings if item.code == "model-facts-left"]
    return args


def test_llama_3_scaling_becomes_arguments() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    args = arguments(rope_scaling=scaling)
    assert (args["use_rope_scaling"], args["rope_scaling_factor"]) == (True, 8.0)
    assert args["left"] == []


def test_a_window_becomes_an_argument() -> None:
    args = arguments(model_type="mistral", sliding_window=9)
    assert args["window_size"] == [8, 0]
    assert args["left"] == []


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "own": 1}}, "rope_scaling"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling"),
        ({"a_new_key": 3}, "a_new_key"),
    ],
)
def test_what_megatron_cannot_say_is_named(facts: dict[str, Any], key: str) -> None:
    [warning] = arguments(**facts)["left"]
    assert f"`{key}` is " in warning.render()


def test_the_whole_text_of_what_is_left() -> None:
    [warning] = arguments(hidden_act="gelu")["left"]
    assert warning.render() == (
        "warning[model-facts-left]: Megatron cannot store 1 of the settings of the model\n"
        '  = note: `hidden_act` is "gelu"\n'
        "  = help: set them in the Megatron run, or it computes something different\n"
        "  = help: `config.json` is copied if the target has a folder for it"
    )


def test_harmless_keys_are_not_told() -> None:
    harmless = {"attention_dropout": 0.1, "use_cache": False, "pretraining_tp": 2, "own": None}
    assert arguments(eos_token_id=[5], rope_scaling=None, **harmless)["left"] == []


BIAS = {f"{AT}self_attention.linear_qkv.bias": (16,)}


@pytest.mark.parametrize(
    ("stored", "stated", "why"),
    [
        (
            {},
            True,
            "the source does not store "
            "`decoder.layers.{local layer}.self_attention.linear_qkv.bias`, which the layout has",
        ),
        (
            BIAS,
            False,
            "the source stores `decoder.layers.{local layer}.self_attention.linear_qkv.bias`, "
            "which the layout has only if attention_bias; the configuration states otherwise",
        ),
    ],
)
def test_biases_that_the_arguments_deny(
    stored: dict[str, tuple[int, ...]], stated: bool, why: str
) -> None:
    run(stored, add_qkv_bias=stated)
    with pytest.raises(ReshardError) as caught:
        reshard.convert("run", "out", "hf")
    assert str(caught.value).startswith(
        "error[no-layout-fits]: the names of this megatron checkpoint do not fit a known "
        f"model\n  = note: the closest layout is `llama.megatron`\n  = note: {why}\n"
    )
