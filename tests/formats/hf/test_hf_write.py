"""Model folders that are written: every weight bit for bit, and nothing left out untold."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import counted, safetensors, sharded

import reshard
from reshard.cli import main
from reshard.dtypes import DType
from reshard.errors import Exit, ReshardError
from reshard.storage.torch_writer import NewStorage, NewTensor
from torch_files import save

Fixture = Callable[[str], Path]
OF_THE_FIXTURES = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 53,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
Read = dict[str, tuple[str, tuple[int, ...], bytes]]
A, B, C = counted(3, 4), counted(5, start=100), counted(2, 2, start=200)
PT = {"format": "pt"}
OWN = {"model_type": "own"}
"""The configuration of a model that no shipped layout is of."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stored(path: Path) -> Read:
    """What a safetensors file holds, by the rules of the format."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == PT
    return {
        name: (
            item["dtype"],
            tuple(item["shape"]),
            data[8 + size + item["data_offsets"][0] : 8 + size + item["data_offsets"][1]],
        )
        for name, item in header.items()
    }


def floats(**arrays: np.ndarray) -> Read:
    return {name: ("F32", value.shape, value.tobytes()) for name, value in arrays.items()}


def refused(**options: Any) -> str:
    with pytest.raises(ReshardError) as caught:
        reshard.convert("model", "out", "hf", **options)
    assert caught.value.exit_code == Exit.TARGET
    assert not Path("out").exists()
    return str(caught.value)


def model(tensors: dict[str, np.ndarray], **config: Any) -> None:
    Path("model").mkdir()
    Path("model/model.safetensors").write_bytes(safetensors(tensors))
    Path("model/config.json").write_text(json.dumps(OWN | config), encoding="utf-8")


def test_one_file() -> None:
    sharded(Path("model"), {"x.safetensors": {"a": A}, "y.safetensors": {"b": B}})
    Path("model/config.json").write_bytes(b'{ "model_type": "own" , "x": Infinity}')
    Path("model/tokenizer.json").write_bytes(b"\xff\x00")
    done = reshard.convert("model", "out", "hf")
    assert sorted(path.name for path in Path("out").glob("[!.]*")) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert stored(Path("out/model.safetensors")) == floats(a=A, b=B)
    assert Path("out/config.json").read_bytes() == b'{ "model_type": "own" , "x": Infinity}'
    assert Path("out/tokenizer.json").read_bytes() == b"\xff\x00"
    assert done.report.warnings == ()
    assert done.to_text().endswith("next: transformers loads it with `from_pretrained('out')`")


def test_several_files_and_their_index() -> None:
    model({"b.2": B, "b.10": C, "a": A}, model_type="any")
    reshard.convert("model", "out", "hf", max_file_size=48)
    index = json.loads(Path("out/model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index == {
        "metadata": {"total_size": 84},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b.10": "model-00002-of-00002.safetensors",
            "b.2": "model-00002-of-00002.safetensors",
        },
    }
    assert stored(Path("out/model-00001-of-00002.safetensors")) == floats(a=A)
    found = stored(Path("out/model-00002-of-00002.safetensors"))
    assert found == floats(**{"b.2": B, "b.10": C})
    reshard.convert("out", "again", "hf")
    assert stored(Path("again/model.safetensors")) == floats(a=A, **{"b.2": B, "b.10": C})


def nearest_even(bits: int) -> int:
    """A float32 that is no NaN, rounded to bfloat16, by its bits."""
    half, even = bits & 0xFFFF, (bits >> 16) & 1
    return (bits >> 16) + (half > 0x8000 or (half == 0x8000 and even == 1))


def test_weights_are_rounded_to_nearest_even_and_the_configuration_says_so() -> None:
    patterns = [0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x80000001, 0x7F800000, 0xFF800000]
    patterns += [0x00010000 * k + 0x7FFF for k in range(1, 200, 7)]
    data = np.array([*patterns, 0x7FC00000], np.uint32).view(np.float32)
    model({"w": data, "n": np.arange(3)}, torch_dtype="float32", hidden_size=3)
    reshard.convert("model", "out", "hf", dtype="bf16")
    found = stored(Path("out/model.safetensors"))
    halves = np.frombuffer(found["w"][2], np.uint16)
    assert found["w"][0] == "BF16"
    assert halves[:-1].tolist() == [nearest_even(bits) for bits in patterns]
    assert halves[-1] == 0x7FC0
    assert found["n"] == ("I64", (3,), np.arange(3).tobytes())
    config = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert config == OWN | {"torch_dtype": "bfloat16", "hidden_size": 3}


def test_a_configuration_that_states_no_type_learns_it() -> None:
    model({"w": B}, hidden_size=5)
    reshard.convert("model", "out", "hf", dtype="fp16")
    config = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert config == OWN | {"hidden_size": 5, "torch_dtype": "float16"}


def test_a_universal_folder_keeps_up_the_configuration() -> None:
    model({"w": B}, hidden_size=5, dtype="float32")
    reshard.convert("model", "out", "universal", dtype="bf16")
    config = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert config == OWN | {"hidden_size": 5, "dtype": "bfloat16"}
    assert reshard.verify("out").ok


def test_quantized_weights_are_not_rounded() -> None:
    model({"w": B}, quantization_config={"quant_method": "fp8"})
    assert refused(dtype="bf16") == (
        "error[quantized-weights]: the weights are quantized, and cannot be converted to another "
        "element type\n"
        "  = note: `config.json` has a `quantization_config`: other tensors hold their scales\n"
        "  = help: leave `--dtype` out; they are copied as they are"
    )
    reshard.convert("model", "out", "hf")
    assert stored(Path("out/model.safetensors")) == floats(w=B)


def test_a_type_that_safetensors_does_not_have() -> None:
    Path("model").mkdir()
    data = safetensors({"w": np.zeros(1, np.uint8).repeat(16)}, kinds={"w": ("C128", [1])})
    Path("model/model.safetensors").write_bytes(data)
    assert refused(names="source") == (
        "error[tensor-dtype]: no safetensors file that other programs read can store `w` in C128\n"
        "  = help: convert to `universal`, which reshard itself reads"
    )


def test_an_option_that_there_is_not() -> None:
    model({"w": B})
    with pytest.raises(ReshardError) as caught:
        reshard.convert("model", "out", "hf:tp=2")
    assert str(caught.value) == (
        "error[unknown-option]: target `hf` has no option `tp`\n  = note: it takes no options"
    )


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ["a"]),
        ({"tie_word_embeddings": True}, ["a"]),
        ({"tie_word_embeddings": False}, ["a", "lm_head"]),
    ],
)
def test_tied_weights_are_stored_as_the_configuration_says(
    config: dict[str, Any], names: list[str]
) -> None:
    storage = NewStorage(DType.F32, 12)
    tensor = NewTensor(storage, 0, (3, 4), (4, 1))
    Path("model").mkdir()
    save(Path("model/pytorch_model.bin"), {"a": tensor, "lm_head": tensor}, {storage: A.tobytes()})
    Path("model/config.json").write_text(json.dumps(OWN | config), encoding="utf-8")
    reshard.convert("model", "out", "hf")
    assert stored(Path("out/model.safetensors")) == floats(**dict.fromkeys(names, A))


MODEL = """\
model toy {
    axis layer = num_layers
    axis h = width
    axis f = 2 * width
    tensor up [layer, f, h]
    tensor bias [layer, f] when has_bias
}

layout run of toy {
    config norm_eps = epsilon
    config theta = theta
    "stack" = up[layer, f, h]
    "bias" = bias[layer, f]
}

layout hf_plain of toy when model_type == "toy" and style == "plain" {
    config num_layers = n_layer
    config has_bias = false
    "m.{layer}.up" = up[f, h]
}

layout hf_biased of toy when model_type == "biased" or model_type == "other" {
    config num_layers = n_layer
    config has_bias = use_bias
    config norm_eps = norms.eps
    config theta = rope_theta
    "m.{layer}.up" = up[f, h]
    "m.{layer}.bias" = bias[f]
}
"""


def toy(*, bias: bool) -> None:
    Path("toy.ucl").write_text(MODEL, encoding="utf-8")
    more = {"bias": counted(2, 6, start=500)} if bias else {}
    model({"stack": counted(2, 6, 3), **more})
    Path("model/config.json").unlink()


def test_a_configuration_is_made_of_what_the_layout_says() -> None:
    toy(bias=False)
    done = reshard.convert(
        "model", "out", "hf", layout="toy.ucl", layout_name="run", settings={"has_bias": 0}
    )
    assert json.loads(Path("out/config.json").read_text(encoding="utf-8")) == {
        "model_type": "toy",
        "n_layer": 2,
        "style": "plain",
        "torch_dtype": "float32",
        "width": 3,
    }
    whole = counted(2, 6, 3)
    assert stored(Path("out/model.safetensors")) == floats(
        **{"m.0.up": whole[0], "m.1.up": whole[1]}
    )
    assert done.report.warnings == ()


def test_what_a_configuration_lacks_must_be_said() -> None:
    toy(bias=True)
    asked: dict[str, Any] = {"layout": "toy.ucl", "layout_name": "run"}
    assert refused(**asked, settings={"has_bias": 1, "epsilon": 3}) == (
        "error[incomplete-model-config]: the source does not record all values that the model's "
        "`config.json` needs\n"
        "  = note: without a value: `rope_theta`\n"
        "  = help: give the model's `config.json` with `--config DIR`\n"
        "  = help: or state it with `--set rope_theta=NUMBER`\n"
        "  = help: `--names source` writes only the tensors, under their present names"
    )
    assert refused(**asked, settings={"has_bias": 1}).splitlines()[1:4] == [
        "  = note: without a value: `norms.eps`, `rope_theta`",
        "  = help: give the model's `config.json` with `--config DIR`",
        "  = help: or state it with `--set norms.eps=NUMBER` and likewise the others",
    ]


@pytest.mark.parametrize("sizes", [{"epsilon": 3, "theta": 5}, {"norms.eps": 3, "rope_theta": 5}])
def test_a_value_is_stated_by_the_name_of_either_side(sizes: dict[str, float]) -> None:
    toy(bias=True)
    asked: dict[str, Any] = {"layout": "toy.ucl", "layout_name": "run"}
    reshard.convert("model", "out", "hf", **asked, settings={"has_bias": 1, **sizes})
    config = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "biased"
    assert (config["norms"], config["rope_theta"]) == ({"eps": 3}, 5)


@pytest.mark.parametrize("key", ["theta", "rope_theta"])
def test_that_a_setting_has_no_value_is_stated(key: str) -> None:
    toy(bias=True)
    asked: dict[str, Any] = {"layout": "toy.ucl", "layout_name": "run"}
    reshard.convert(
        "model", "out", "hf", **asked, settings={"has_bias": 1, "epsilon": 3, key: None}
    )
    config = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert (config["norms"], config["rope_theta"]) == ({"eps": 3}, None)
    assert reshard.verify(
        "model", "out", **asked, settings={"has_bias": 1, "epsilon": 3, key: None}
    )
    # What the file says otherwise does not win without a word.
    other = {**asked, "layout_name": "hf_biased"}
    Path("out/config.json").write_text(json.dumps(config | {"rope_theta": 7}), encoding="utf-8")
    done = reshard.convert("out", "again", "hf", **other, settings={"theta": None})
    [warning] = done.report.warnings
    assert warning.notes == ("`rope_theta`: null is written, the file says 7",)
    config = json.loads(Path("again/config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] is None


def test_no_value_is_stated_on_the_command_line() -> None:
    toy(bias=True)
    stated = ["has_bias=1", "epsilon=3", "theta=null"]
    options = ["--layout", "toy.ucl#run", *(word for item in stated for word in ("--set", item))]
    assert main(["convert", "model", "out", "--to", "hf", *options]) == 0
    assert json.loads(Path("out/config.json").read_text(encoding="utf-8"))["rope_theta"] is None


def test_a_size_of_the_tensors_stays_where_none_is_stated() -> None:
    toy(bias=True)
    settings = {"has_bias": 1, "epsilon": 3, "theta": 5, "width": None, "num_layers": None}
    reshard.convert("model", "out", "hf", layout="toy.ucl", layout_name="run", settings=settings)
    config = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert (config["width"], config["n_layer"]) == (3, 2)


def truth(case: Path) -> dict[str, bytes]:
    """Bytes of every parameter in fp32, as the run held it."""
    data = (case / "truth.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    return {
        name.removesuffix("/fp32"): data[8 + size + at : 8 + size + to]
        for name, item in header.items()
        if name.endswith("/fp32")
        for at, to in [item["data_offsets"]]
    }


def test_weights_of_a_run_that_has_only_masters(fixture_checkpoint: Fixture) -> None:
    case = fixture_checkpoint("z3_bf16_dp3_untied")
    done = reshard.convert(case / "ckpt", "out", "hf", names="source")
    assert done.next_step == f"reshard verify {case / 'ckpt'} out --states weights"
    found = {name: data for name, (_, _, data) in stored(Path("out/model.safetensors")).items()}
    assert found == truth(case)
    assert [item.render() for item in done.report.warnings] == [
        "warning[no-model-config]: no `config.json` is written\n"
        "  = note: the source has none, and layout `deepspeed` states no model\n"
        "  = help: put that of the model into the folder; transformers cannot load without it",
        "warning[weights-of-masters]: 21 tensors are written from the optimizer's master weights\n"
        "  = note: the source stores no other weights of them\n"
        "  = note: `model.embed_tokens.weight`\n"
        "  = note: `model.layers.{0,1}.self_attn.q_proj.weight` (2 tensors)\n"
        "  = note: `model.layers.{0,1}.self_attn.k_proj.weight` (2 tensors)\n"
        "  = note: `model.layers.{0,1}.self_attn.v_proj.weight` (2 tensors)\n"
        "  = note: `model.layers.{0,1}.self_attn.o_proj.weight` (2 tensors)\n"
        "  = help: `--dtype bf16` rounds them to the type of the computation",
        "warning[training-left]: the state of the training is not in a model folder\n"
        "  = note: left behind: `iteration` (3), `param_groups` (2 groups: `weight_decay`, `lr`, "
        "`betas`, `eps`, `amsgrad`, `maximize`, `foreach`, `capturable`, `differentiable`, "
        "`fused`, `decoupled_weight_decay`), `lr_scheduler`, `loss_scaler`, `dynamic_loss_scale`, "
        "`overflow`\n"
        "  = help: keep the source, or convert to `universal`, to go on training",
        "warning[keys-left]: 3 keys of the source are not converted\n"
        "  = note: it belongs to the training run, and a model folder holds none: `my_iteration`, "
        "`args`, `iteration`\n"
        "  = help: keep the source if you need them",
    ]
    assert reshard.verify(case / "ckpt", "out", states="weights").ok
    reshard.convert(case / "ckpt", "rounded", "hf", dtype="bf16", names="source")
    assert reshard.verify(case / "ckpt", "rounded", states="weights", dtype="bf16").ok
    rounded = stored(Path("rounded/model.safetensors"))
    for name, data in found.items():
        wanted = [nearest_even(int(bits)) for bits in np.frombuffer(data, np.uint32)]
        assert rounded[name][0] == "BF16"
        assert np.frombuffer(rounded[name][2], np.uint16).tolist() == wanted


def test_sizes_that_only_a_person_knows(fixture_checkpoint: Fixture) -> None:
    case = fixture_checkpoint("z1_bf16_dp4_tied")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(case / "ckpt", "own", "hf")
    assert str(caught.value) == (
        "error[no-model-config]: transformers needs a `config.json`, and the source does not "
        "record enough to write one\n"
        "  = note: the source has none, and layout `deepspeed` states no model\n"
        "  = note: this looks like model `llama`, but not all of its sizes can be inferred\n"
        "  = note: kv * q * two * half = 40, from dimension 0 of "
        "`model.layers.0.self_attn.q_proj.weight`, shape [40, 40] "
        "in bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt\n"
        "  = note: kv * two * half = 20, from dimension 0 of "
        "`model.layers.0.self_attn.k_proj.weight`, shape [20, 40] "
        "in bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt\n"
        "  = help: give the model's `config.json` with `--config DIR`\n"
        "  = help: or state them, e.g. `--set num_attention_heads=32 --set num_key_value_heads=8`\n"
        "  = help: `--names source` writes only the tensors, under their present names"
    )
    done = reshard.convert(case / "ckpt", "own", "hf", names="source")
    left = {fate.state: fate.why for fate in done.report.fates if fate.kind == "dropped"}
    why = "a model folder holds weights only"
    assert left == dict.fromkeys(("master", "exp_avg", "exp_avg_sq", "step"), why)
    Path("given").mkdir()
    given = json.dumps(OF_THE_FIXTURES)
    Path("given/config.json").write_text(given, encoding="utf-8")
    Path("given/tokenizer.json").write_text("{}", encoding="utf-8")
    Path("given/weights.bin").write_text("", encoding="utf-8")
    done = reshard.convert(case / "ckpt", "told", "hf", config="given")
    assert done.next_step == "transformers loads it with `from_pretrained('told')`"
    told = {path.name: path.read_bytes() for path in Path("told").glob("[!.]*.json")}
    assert told == {"config.json": given.encode(), "tokenizer.json": b"{}"}
    one, other = (stored(Path(name, "model.safetensors")) for name in ("own", "told"))
    assert one == other


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_configuration_of_another_model_is_refused(
    name: str, fixture_checkpoint: Fixture
) -> None:
    case = fixture_checkpoint("z1_bf16_dp4_tied")
    given = OF_THE_FIXTURES | {name: 41}
    Path("given.json").write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(case / "ckpt", "out", "hf", config="given.json")
    assert caught.value.exit_code in (Exit.LAYOUT, Exit.SOURCE, Exit.TARGET)
    assert not Path("out").exists()


def test_a_source_without_weights(fixture_checkpoint: Fixture) -> None:
    case = fixture_checkpoint("z1_fp32_dp2_untied")
    reshard.convert(case / "ckpt", "model", "universal", states="exp_avg")
    assert refused().replace(str(Path.cwd()), "...") == (
        "error[no-weights]: the source stores no weights, and a model folder holds nothing else\n"
        "  = note: read from .../model"
    )


def test_a_target_without_a_place_for_files_tells_which_are_left(
    fixture_checkpoint: Fixture,
) -> None:
    reshard.convert(fixture_checkpoint("nanotron_tp1_z0") / "ckpt", "model", "hf")
    Path("model/tokenizer.json").write_text("{}", encoding="utf-8")
    report = reshard.plan("model", "deepspeed-universal")
    assert [item.render() for item in report.warnings if item.code == "side-file-left"] == [
        "warning[side-file-left]: 2 files of the source are not copied to the target\n"
        "  = note: a folder in DeepSpeed's universal form has no place for it: `config.json`, "
        "`tokenizer.json`\n"
        "  = help: copy them yourself if you need them"
    ]


def test_a_model_whose_class_is_code_is_loaded_with_that_code(tmp_path: Path) -> None:
    source = sharded(tmp_path / "src", {"model.safetensors": {"gate.weight": counted(3, 2)}})
    (source / "model.safetensors.index.json").unlink(missing_ok=True)
    config = {"model_type": "mine", "auto_map": {"AutoModel": "modeling_mine.Mine"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "modeling_mine.py").write_text("# a class\n")
    done = reshard.convert(source, tmp_path / "out", "hf")
    assert done.next_step == (
        f"transformers loads it with `from_pretrained('{tmp_path / 'out'}', "
        "trust_remote_code=True)`, which runs the Python files beside it"
    )
    assert (tmp_path / "out/modeling_mine.py").read_text() == "# a class\n"
