"""Model folders as hubs and runs hold them: more names than the model has, fewer, others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import counted, safetensors

import reshard
from reshard.cli.entry import main
from reshard.errors import Exit, ReshardError

Tensors = dict[str, np.ndarray]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
TARGETS = ("hf", "megatron:tp=2", "torchtitan", "nanotron:tp=2")
LEFT = "rotary frequencies, which the model computes from its configuration"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def llama() -> Tensors:
    """A model of two layers; each element is its own number."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (16, 8)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (8, 12)
        shapes |= {f"{at}.{n}_layernorm.weight": (8,) for n in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (16, 8)}
    out, start = {}, 1
    for name, shape in shapes.items():
        out[name] = counted(*shape, start=start)
        start += out[name].size
    return out


def folder(name: str, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    path = Path(name)
    path.mkdir()
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    (path / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    return path


def read(path: str | Path) -> dict[str, bytes]:
    """Every weight of a checkpoint, by its name there."""
    checkpoint = reshard.open(path)
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.tensors}


def as_bytes(tensors: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in tensors.items()}


def refused(src: Path, to: str, **options: Any) -> str:
    with pytest.raises(ReshardError) as caught:
        reshard.convert(src, "out", to, **options)
    assert not Path("out").exists()
    return str(caught.value)


def check_next(done: Any) -> None:
    """The command that is printed, if it is one, ends with 0."""
    words = shlex.split(done.next_step)
    if words[0] == "reshard":
        assert main(words[1:]) == Exit.OK, done.next_step


@pytest.mark.parametrize("to", TARGETS)
def test_buffers_are_left_out_and_reported(to: str) -> None:
    more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": counted(2) for i in range(2)}
    source = folder("source", llama() | more)
    done = reshard.convert(source, "out", to)
    assert [item.why for item in done.report.left if item.key] == [LEFT, LEFT]
    assert "keys-left" in [item.code for item in done.report.warnings]
    check_next(done)
    plain = folder("plain", llama())
    assert reshard.verify(plain, "out").ok


def test_a_name_that_a_layout_has_is_no_buffer() -> None:
    """A bias by the name of a mask: four dimensions make the mask."""
    source = folder("source", llama() | {"model.layers.0.self_attn.bias": counted(4)})
    assert "no rule for `model.layers.0.self_attn.bias`" in refused(source, "megatron")


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
    ],
)
def test_what_wrappers_put_into_names_is_taken_away(wrap: Any, to: str) -> None:
    source = folder("source", {wrap(name): value for name, value in llama().items()})
    done = reshard.convert(source, "out", to)
    check_next(done)
    assert reshard.verify(folder("plain", llama()), "out").ok
    if to == "hf":
        assert read("out") == as_bytes(llama())


def test_a_base_model_has_no_head() -> None:
    base = {name.removeprefix("model."): value for name, value in llama().items()}
    del base["lm_head.weight"]
    source = folder("source", base, architectures=["LlamaModel"])
    done = reshard.convert(source, "model", "hf")
    assert done.next_step == "transformers loads it with `from_pretrained('model')`"
    assert read("model") == as_bytes(base)
    assert refused(source, "megatron:tp=2").splitlines()[:3] == [
        "error[no-layout-fits]: the names of this hf checkpoint do not fit model `llama`, which "
        "its configuration states",
        "  = note: its configuration states `llama`, which is layout `llama.hf`",
        "  = note: the source does not store `lm_head.weight`, which the layout has",
    ]


def test_a_whole_model_without_the_prefix_is_named_in_full() -> None:
    names = {name.removeprefix("model."): value for name, value in llama().items()}
    source = folder("source", names)
    done = reshard.convert(source, "out", "megatron:tp=2")
    check_next(done)
    assert reshard.verify(folder("plain", llama()), "out").ok


def test_a_causal_model_without_its_head_is_not_promised() -> None:
    tensors = llama()
    del tensors["lm_head.weight"]
    text = refused(folder("source", tensors), "hf")
    assert "the source does not store `lm_head.weight`" in text


def test_the_head_of_a_reward_model_is_kept_or_named() -> None:
    tensors = llama() | {"score.weight": counted(1, 8)}
    del tensors["lm_head.weight"]
    source = folder("source", tensors, architectures=["LlamaForSequenceClassification"])
    for to in ("hf", "universal", "dcp"):
        reshard.convert(source, to, to)
        assert read(to) == as_bytes(tensors)
    assert "no rule for `score.weight`" in refused(source, "megatron:tp=2")


def test_a_value_head_is_kept_or_left_out_on_purpose() -> None:
    head = {"v_head.summary.weight": counted(1, 8), "v_head.summary.bias": counted(1)}
    source = folder("source", llama() | head)
    done = reshard.convert(source, "model", "hf")
    assert read("model") == as_bytes(llama() | head)
    assert [item.render() for item in done.report.warnings] == [
        "warning[unnamed-kept]: `llama.hf` has no rule for 2 names, which are kept unchanged\n"
        "  = note: `v_head.summary.weight`\n"
        "  = note: `v_head.summary.bias`\n"
        "  = help: the loader ignores names that its model does not have"
    ]
    text = refused(source, "megatron:tp=2")
    assert "--leave-out 'v_head.summary.weight' --leave-out 'v_head.summary.bias'" in text
    done = reshard.convert(source, "out", "megatron:tp=2", leave_out=["v_head.*"])
    assert done.next_step == "reshard verify source out --leave-out 'v_head.*'"
    assert [item.key for item in done.report.left if item.key] == [*head]
    check_next(done)
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, "again", "hf", leave_out=["v_heat.summary.bias"])
    assert str(caught.value) == (
        "error[unknown-tensor]: no tensor of the source matches `v_heat.summary.bias`, which is "
        "to be excluded\n"
        "  = help: did you mean `v_head.summary.bias`?"
    )


def test_a_tensor_beside_the_model_is_not_one_that_the_model_lacks() -> None:
    """A name that was changed in one layer: transformers would make up the weight."""
    tensors = llama()
    name = "model.layers.1.mlp.gate_proj.weight"
    tensors[f"{name}_old"] = tensors.pop(name)
    text = refused(folder("source", tensors), "hf")
    assert text.startswith("error[coverage-gap]: ")
    assert "elements of `gate` are not stored" in text
    assert not Path("out").exists()


def test_a_tensor_that_the_configuration_rules_out_is_named() -> None:
    name = "model.layers.1.self_attn.q_proj.bias"
    source = folder("source", llama() | {name: counted(8)}, attention_bias=False)
    done = reshard.convert(source, "model", "hf")
    assert [item.render() for item in done.report.warnings] == [
        "warning[unused-weights]: the model of `config.json` does not use 1 tensors in its layers, "
        "which are kept unchanged\n"
        f"  = note: `{name}`\n"
        "  = note: by its configuration, the model is `llama.hf`\n"
        "  = help: make sure that `config.json` is that of the trained model: the loader ignores "
        "these tensors, and computes without them"
    ]
    assert done.next_step == "reshard verify source model"
    check_next(done)


def test_a_tensor_of_another_model_in_a_layer_is_no_tensor_beside_the_model() -> None:
    more = {f"model.layers.{i}.self_attn.q_norm.weight": counted(4) for i in range(2)}
    source = folder("source", llama() | more | {"v_head.summary.weight": counted(1, 8)})
    done = reshard.convert(source, "model", "hf")
    codes = [item.code for item in done.report.warnings]
    assert codes == ["unused-weights", "unnamed-kept"]
    assert done.next_step == "reshard verify source model"
    check_next(done)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("stored", ["embedding", "head", "both"])
def test_a_tied_head_is_written_once(stored: str, to: str) -> None:
    tensors = llama()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    once = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    if stored == "embedding":
        tensors = once
    elif stored == "head":
        del tensors["model.embed_tokens.weight"]
    source = folder("source", tensors, tie_word_embeddings=True)
    done = reshard.convert(source, "out", to)
    check_next(done)
    assert reshard.verify(folder("plain", once, tie_word_embeddings=True), "out").ok
    if to == "hf":
        assert read("out") == as_bytes(once)


@pytest.mark.parametrize("to", TARGETS)
def test_a_tied_head_that_differs_is_drift(to: str) -> None:
    source = folder("source", llama(), tie_word_embeddings=True)
    assert "error[replica-mismatch]" in refused(source, to)
    reshard.convert(source, "kept", "universal")
    assert read("kept") == as_bytes(llama())


def test_a_layer_that_predicts_further_tokens_is_left_out() -> None:
    tensors = llama()
    behind = {
        name.replace("layers.1.", "layers.2."): value + 1
        for name, value in tensors.items()
        if "layers.1." in name
    }
    for name in ("enorm", "hnorm", "eh_proj"):
        behind[f"model.layers.2.{name}.weight"] = counted(8)
    source = folder("source", tensors | behind)
    done = reshard.convert(source, "out", "megatron:tp=2")
    assert {item.key for item in done.report.left if item.key} == {*behind}
    check_next(done)
    assert reshard.verify(folder("plain", tensors), "out").ok


def test_layers_behind_the_last_one_that_are_like_the_others_are_refused() -> None:
    tensors = llama()
    tensors |= {k.replace("layers.1.", "layers.2."): v for k, v in llama().items()}
    assert refused(folder("source", tensors), "megatron") == (
        "error[coverage-overlap]: the source stores 3 along axis `layer`, and `num_hidden_layers` "
        "is 2\n"
        "  = note: beyond it: `model.layers.2.self_attn.q_proj.weight`, and 8 more\n"
        "  = help: correct the configuration, or state the size: `--set num_hidden_layers=3`"
    )


def quantized(**config: Any) -> Path:
    tensors = llama()
    name = "model.layers.0.mlp.up_proj.weight"
    return folder("source", tensors | {f"{name}_scale_inv": counted(2, 1)}, **config)


def test_quantized_weights_are_kept_where_the_configuration_speaks_of_them() -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    source = quantized(quantization_config=settings)
    done = reshard.convert(source, "model", "hf")
    assert read("model") == read(source)
    assert done.next_step == "transformers loads it with `from_pretrained('model')`"
    assert refused(source, "megatron") == (
        "error[quantized-weights]: the weights are quantized, and no layout describes them with "
        "their scales\n"
        "  = note: 1 weights are quantized, with a scale for each of their blocks of 8 x 8: "
        "`model.layers.0.mlp.up_proj.weight` is F32 [12, 8], "
        "`model.layers.0.mlp.up_proj.weight_scale_inv` [2, 1]\n"
        "  = note: the target needs the names of layout `megatron`, and nothing states which "
        "tensor is which\n"
        "  = help: first convert the model to BF16 with its own tools\n"
        "  = help: `universal` and `dcp` keep weights and scales unchanged\n"
        "  = help: `--names source` keeps the names of the source; the loader of the target may "
        "not know them"
    )


@pytest.mark.parametrize("to", ["hf", "dcp", "universal"])
def test_a_quantized_weight_whose_scale_is_lost_is_named(to: str) -> None:
    """The other weights are in FP8 and have scales; the norms are not quantized."""
    stored: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    names = {"F32": "F32", "F8": "F8_E4M3"}
    for name, value in llama().items():
        is_quantized = name.endswith("_proj.weight")
        kind, data = ("F8", value.astype(np.uint8)) if is_quantized else ("F32", value)
        stored[name] = (names[kind], value.shape, data.tobytes())
        if is_quantized:
            stored[f"{name}_scale_inv"] = ("F32", (2, 1), counted(2, 1).tobytes())
    lost = "model.layers.1.mlp.down_proj.weight"
    del stored[f"{lost}_scale_inv"]
    header, data = {}, b""
    for name, (kind, shape, part) in stored.items():
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        data += part
    text = json.dumps(header).encode()
    settings = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    source = folder("source", {}, quantization_config=settings)
    (source / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    done = reshard.convert(source, "out", to)
    assert done.report.warnings[0].render() == (
        "warning[lacking-scales]: the source does not store the scale of 1 quantized weight\n"
        f"  = note: first: `{lost}`, F8_E4M3 [8, 12]\n"
        "  = note: it stores the scales of 13 others, such as "
        "`model.layers.0.self_attn.q_proj.weight_scale_inv`\n"
        "  = help: look for a lost file or key: the values of a weight are unknown without its "
        "scale"
    )
    assert done.next_step.startswith("reshard verify ")
    check_next(done)


def test_quantized_weights_that_nothing_speaks_of_are_not_promised() -> None:
    assert refused(quantized(), "hf").startswith("error[quantized-weights]")


@pytest.mark.parametrize("to", ["hf", "torchtitan", "olmo-core"])
def test_names_of_no_layout_are_kept_on_purpose_alone(to: str) -> None:
    tensors = {"blocks.0.w": counted(3, 4), "head": counted(2)}
    source = folder("source", tensors, model_type="llama")
    text = refused(source, to)
    assert text.startswith("error[no-layout-fits]")
    assert "`--names source` keeps the names of the source" in text
    done = reshard.convert(source, "out", to, names="source")
    assert done.next_step == "reshard verify source out"
    check_next(done)


def test_a_model_that_no_layout_knows_is_its_own_proof() -> None:
    tensors = {"blocks.0.w": counted(3, 4), "head": counted(2)}
    source = folder("source", tensors, model_type="own", architectures=["OwnModel"])
    done = reshard.convert(source, "out", "hf")
    assert done.next_step == "transformers loads it with `from_pretrained('out')`"
    assert read("out") == as_bytes(tensors)


def encoder_decoder(*, is_tied: bool) -> tuple[Tensors, dict[str, Any]]:
    """A model of another family, with the words that its configuration has for sizes."""
    tensors = {
        "shared.weight": counted(16, 4),
        "encoder.block.0.layer.0.SelfAttention.q.weight": counted(8, 4, start=100),
        "decoder.block.0.layer.0.SelfAttention.q.weight": counted(8, 4, start=200),
    }
    if not is_tied:
        tensors["lm_head.weight"] = counted(16, 4, start=300)
    config = {"num_layers": 1, "d_model": 4, "d_kv": 2, "num_heads": 4, "vocab_size": 16}
    return tensors, {**config, "tie_word_embeddings": is_tied}


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("way", [["universal"], ["dcp"], ["dcp", "universal"]])
def test_names_of_transformers_stay_its_own(way: list[str], is_tied: bool) -> None:
    tensors, config = encoder_decoder(is_tied=is_tied)
    source = folder("source", tensors, **config, model_type="t5", architectures=["T5Model"])
    stated = (source / "config.json").read_bytes()
    for number, to in enumerate(way):
        source = reshard.convert(source, f"step{number}", to).path
    done = reshard.convert(source, "out", "hf")
    assert done.next_step == "transformers loads it with `from_pretrained('out')`"
    assert read("out") == as_bytes(tensors)
    assert json.loads(Path("out/config.json").read_bytes()) == json.loads(stated)


def test_names_of_another_format_are_not_taken_for_those_of_transformers() -> None:
    tensors, config = encoder_decoder(is_tied=True)
    source = folder("source", tensors, **config, model_type="t5")
    universal = reshard.convert(source, "universal", "universal").path
    manifest = json.loads((universal / "manifest.json").read_text())
    assert manifest["provenance"][-1]["names"] == "hf"
    llama_of = folder("llama", llama())
    reshard.convert(llama_of, "renamed", "universal", names="megatron")
    renamed = json.loads(Path("renamed/manifest.json").read_text())
    assert "names" not in renamed["provenance"][-1]


def test_the_printed_verification_knows_how_the_source_was_read() -> None:
    source = folder("source", llama())
    done = reshard.convert(
        source, "out", "megatron:tp=2", dtype="bf16", settings={"head_dim": 4}, model="llama"
    )
    wanted = "reshard verify source out --set head_dim=4 --model llama --dtype bf16"
    assert done.next_step == wanted
    check_next(done)


def parts(tensors: Tensors) -> list[Tensors]:
    names = sorted(tensors)
    return [{name: tensors[name] for name in half} for half in (names[:9], names[9:])]


def test_a_whole_set_of_files_needs_no_index() -> None:
    Path("source").mkdir()
    for number, part in enumerate(parts(llama()), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        Path("source", name).write_bytes(safetensors(part))
    Path("source/config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    done = reshard.convert("source", "out", "hf")
    assert done.next_step == "transformers loads it with `from_pretrained('out')`"
    assert read("out") == as_bytes(llama())


def test_a_set_without_index_that_holds_a_tensor_twice_is_refused() -> None:
    Path("source").mkdir()
    for number in (1, 2):
        name = f"model-{number:05}-of-00002.safetensors"
        Path("source", name).write_bytes(safetensors({"w": counted(2)}))
    assert refused(Path("source"), "universal") == (
        "error[index-mismatch]: two files of source contain `w`, and no index states which one to "
        "use\n"
        "  = note: it is in `model-00001-of-00002.safetensors` and in "
        "`model-00002-of-00002.safetensors`\n"
        "  = help: copy the index of the set too"
    )


def cached(revision: str) -> Path:
    """A model in the cache of the hub: files are links to blobs."""
    plain, root = folder("plain", llama()), Path("models--a--b")
    for name in ("blobs", "refs", "snapshots/abc"):
        (root / name).mkdir(parents=True)
    (root / "refs/main").write_text(revision, encoding="utf-8")
    for number, item in enumerate(sorted(plain.iterdir())):
        item.rename(root / f"blobs/{number}")
        (root / f"snapshots/abc/{item.name}").symlink_to(f"../../blobs/{number}")
    return root


def test_the_root_of_a_cached_model_means_its_main_snapshot() -> None:
    done = reshard.convert(cached("abc\n"), "out", "hf")
    assert done.report.warnings == ()
    assert done.next_step == "transformers loads it with `from_pretrained('out')`"
    assert read("out") == as_bytes(llama())


@pytest.mark.parametrize("revision", ["../../plain", "", "abc/../abc", "other"])
def test_a_reference_that_names_no_snapshot_is_followed_nowhere(revision: str) -> None:
    assert "unknown-source" in refused(cached(revision), "hf")
