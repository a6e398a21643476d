"""Sizes and facts that the user states: each takes effect, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import reshard
from reshard.errors import ReshardError
from tiny_llama import CONFIG, write
from torch_trees import counted, write_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


def refused(source: Path, name: str, value: float, to: str = "megatron") -> str:
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, source.parent / "out", to, settings={name: value})
    assert not (source.parent / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("rms_norm_eps", 0.5, "rms_norm_eps"),
        ("args.norm_epsilon", 0.5, "rms_norm_eps"),
        ("rope_theta", 77, "rope_theta"),
        ("args.rotary_base", 77, "rope_theta"),
        ("args.max_position_embeddings", 99, "max_position_embeddings"),
    ],
)
def test_a_value_by_either_sides_name_goes_before_the_sources_own(
    name: str, value: float, key: str, source: Path, tmp_path: Path
) -> None:
    reshard.convert(source, tmp_path / "run", "megatron:tp=2", settings={name: value})
    reshard.convert(tmp_path / "run", tmp_path / "back", "hf")
    config = json.loads((tmp_path / "back/config.json").read_text(encoding="utf-8"))
    assert {k: v for k, v in config.items() if CONFIG.get(k) != v and k != "torch_dtype"} == {
        key: value
    }


def test_a_name_that_nothing_asks_for(source: Path) -> None:
    assert refused(source, "rotary_base", 77) == (
        "error[unused-setting]: `--set rotary_base=77` has no effect here\n"
        "  = note: no value of layout `hf`, `megatron` is called so, or computed from it\n"
        "  = help: did you mean `args.rotary_base`?"
    )
    assert refused(source, "zzz", 3).endswith("= help: omit `--set zzz=...`")


def test_a_name_where_no_model_is_asked_for(source: Path, tmp_path: Path) -> None:
    done = reshard.convert(source, tmp_path / "out", "universal", settings={"vocab_size": 8})
    assert [item.render() for item in done.report.warnings] == [
        "warning[unused-setting]: `--set vocab_size=8` has no effect here\n"
        "  = note: the tensors are copied without a model, and sizes and facts are of one\n"
        "  = help: name the model with `--model`, or omit the setting"
    ]


def test_a_size_that_the_tensors_do_not_have(source: Path) -> None:
    assert refused(source, "args.num_layers", 3) == (
        "error[shape-mismatch]: `--set args.num_layers=3` is not what the stored shapes say\n"
        "  = note: `num_hidden_layers` is 1 by the shapes of the tensors\n"
        "  = help: omit `--set args.num_layers=...`"
    )


def test_a_size_of_the_model_that_a_tensor_does_not_have(source: Path) -> None:
    assert refused(source, "hidden_size", 16) == (
        "error[shape-mismatch]: dimension 1 of `model.embed_tokens.weight` has 8 elements where "
        "the layout says 16\n"
        "  = note: shape [10, 8] in model.safetensors\n"
        "  = note: `hidden_size` is 16 by the configuration or `--set`\n"
        "  = help: correct it if the tensor is right: `--set hidden_size=8`"
    )
    assert refused(source, "num_attention_heads", 4).splitlines()[-1] == (
        "  = help: correct the size that is wrong, in the configuration or with `--set`"
    )


def test_an_axis_that_is_not_said_to_be_cut(tmp_path: Path) -> None:
    for rank in range(2):
        tree = {"whole": counted(4), "part": counted(2, start=2 * rank)}
        write_tree(tmp_path / "run" / f"rank{rank}.pt", {"model": tree})
    text = tmp_path / "own.ucl"
    text.write_text(
        "layout own {\n    mesh tp\n"
        '    file "rank{tp}.pt" {\n        state param at "model/{name}"\n    }\n'
        '    "*" = [rows:4]\n}\n'
    )
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run", layout=text)
    assert str(caught.value) == (
        "error[shape-mismatch]: dimension 0 of `part` has 2 elements where the layout says 4\n"
        "  = note: shape [2] in rank0.pt\n"
        "  = help: an axis that is cut over ranks needs `over MESH_AXIS` in the layout"
    )


def test_flags_that_a_run_of_megatron_needs(tmp_path: Path) -> None:
    """Megatron loads most arguments of the model from a checkpoint, and not these."""
    source = write(tmp_path / "model", rms_norm_eps=1e-6, sliding_window=8, model_type="mistral")
    done = reshard.convert(source, tmp_path / "out", "megatron")
    said = [item.render() for item in done.report.warnings if item.code == "megatron-resume"]
    assert said == [
        "warning[megatron-resume]: `--use-checkpoint-args` does not load every argument of the "
        "model\n"
        "  = note: Megatron takes its own defaults for what the command line does not say\n"
        "  = help: give the run `--norm-epsilon 1e-06` `--window-size 7,0`, too"
    ]
    reshard.convert(write(tmp_path / "plain"), tmp_path / "other", "megatron")
    done = reshard.convert(tmp_path / "other", tmp_path / "again", "megatron:tp=2")
    assert "--use-checkpoint-args" not in "".join(item.headline for item in done.report.warnings)
