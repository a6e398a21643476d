"""Checkpoints written as a text describes them: read again they are equal, leaf for leaf."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_described_read import HOME, NET, ZERO, home, layout_file, numbered, same, zero_run

import reshard
import tiny_llama
from reshard.cli import main
from reshard.errors import ReshardError
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import open_torch_file, read_small
from torch_trees import counted, write_tree


def plain(value: object) -> Any:
    """A tree of a file with tensors as (type, shape, bytes)."""
    if isinstance(value, TensorRef):
        return str(value.dtype), value.shape, read_small(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def leaves(folder: Path) -> dict[str, Any]:
    """What every torch file of a folder holds."""
    return {path.name: plain(open_torch_file(path).root) for path in sorted(folder.glob("*.pt"))}


def test_at_another_mesh_and_back(tmp_path: Path) -> None:
    whole = home(tmp_path / "run")
    text = layout_file(tmp_path, HOME)
    reshard.convert(tmp_path / "run", tmp_path / "one", f"{text}:tp=1", layout=text)
    (part,) = leaves(tmp_path / "one").values()
    assert part["step"] == 7
    assert {name: value[1] for name, value in part["model"].items()} == {
        name: value.shape for name, value in whole.items()
    }
    reshard.convert(tmp_path / "one", tmp_path / "two", f"{text}#home:tp=2", layout=text)
    assert leaves(tmp_path / "two") == leaves(tmp_path / "run")


def test_from_any_source_and_on_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home(tmp_path / "run")
    text = layout_file(tmp_path, HOME)
    reshard.convert(tmp_path / "run", tmp_path / "u", "universal", layout=text)
    argv = ["convert", str(tmp_path / "u"), str(tmp_path / "back"), "--to", f"{text}:tp=2"]
    assert main(argv) == 0
    said = capfd.readouterr().out.replace(str(tmp_path), "...")
    assert said.startswith("wrote a checkpoint described by a layout to .../back\n")
    assert said.endswith("next: reshard inspect .../back --layout .../x.ucl\n")
    assert leaves(tmp_path / "back") == leaves(tmp_path / "run")
    assert main(["inspect", str(tmp_path / "back"), "--layout", str(text)]) == 0
    via = ["roundtrip", str(tmp_path / "run"), "--layout", str(text), "--via", f"{text}:tp=1"]
    assert main(via) == 0


@pytest.mark.parametrize(("kind", "ranks"), [("buffer align 2 * dp", 2), ("each", 3)])
def test_buffers_that_ranks_share(tmp_path: Path, kind: str, ranks: int) -> None:
    states = zero_run(tmp_path / "run", kind.split()[0], ranks)
    text = layout_file(tmp_path, ZERO.replace("KIND", kind))
    src = tmp_path / "run"
    reshard.convert(src, tmp_path / "again", f"{text}:dp={ranks}", layout=text)
    wanted, found = leaves(src), leaves(tmp_path / "again")
    wanted["weights.pt"].pop("mask")
    for tree in wanted.values():  # numbers of groups are tensors when they are written
        for group in tree.get("state", {}).values():
            group["step"] = ("I64", (), (4).to_bytes(8, "little"))
    assert found == wanted
    reshard.convert(src, tmp_path / "five", f"{text}:dp=5", layout=text)
    checkpoint = reshard.open(tmp_path / "five", layout=text)
    assert checkpoint.mesh == {"dp": 5}
    for state, tensors in states.items():
        for name, value in tensors.items():
            assert same(checkpoint.read(name, state), value), (name, state)


def test_what_each_rank_keeps_at_another_mesh(tmp_path: Path) -> None:
    zero_run(tmp_path / "run", "each", 3)
    text = layout_file(tmp_path, ZERO.replace("KIND", "each"))
    for ranks, note in (
        (2, "not written: `rng` of dp=2"),
        (4, "the source has none for: `rng` of dp=3"),
    ):
        done = reshard.convert(
            tmp_path / "run", tmp_path / f"{ranks}", f"{text}:dp={ranks}", layout=text
        )
        (warning,) = [item for item in done.report.warnings if item.code == "training-left"]
        assert warning.render() == (
            "warning[training-left]: the target has other ranks than the source, and each rank of "
            "it kept values\n"
            f"  = note: {note}\n"
            "  = help: set them again where the run continues, such as random states"
        )


def test_rows_of_each_tensor(tmp_path: Path) -> None:
    text = layout_file(
        tmp_path,
        """
layout rows {
    mesh dp
    file "model_{#dp}_{dp}.pt" { state param at "{name}" }
    file "optim_{#dp}_{dp}.pt" { states at "{name}/{state}" }
    partition param, exp_avg over dp as rows
}
""",
    )
    tree = {"model": NET, "optimizer": numbered(NET, [list(NET)])}
    write_tree(tmp_path / "one.pt", tree)
    reshard.convert(tmp_path / "one.pt", tmp_path / "rows", f"{text}:dp=4", states="param,exp_avg")
    parts = leaves(tmp_path / "rows")
    assert [parts[f"model_4_{rank}.pt"]["a.weight"][1] for rank in range(4)] == [
        (2, 4),
        (2, 4),
        (2, 4),
        (0, 4),
    ]
    again = reshard.open(tmp_path / "rows", layout=text)
    for name, value in NET.items():
        assert same(again.read(name), value)
        assert same(again.read(name, "exp_avg"), value * np.float32(0.5))


GPT = {
    "transformer.wte.weight": counted(5, 4),
    "transformer.wpe.weight": counted(3, 4, start=20),
    "transformer.h.0.ln_1.weight": counted(4, start=40),
    "transformer.h.0.attn.c_attn.weight": counted(12, 4, start=50),
    "transformer.h.0.attn.c_proj.weight": counted(4, 4, start=60),
    "transformer.h.0.ln_2.weight": counted(4, start=45),
    "transformer.h.0.mlp.c_fc.weight": counted(16, 4, start=70),
    "transformer.h.0.mlp.c_proj.weight": counted(4, 16, start=80),
    "transformer.ln_f.weight": counted(4, start=100),
}


def nanogpt(folder: Path) -> None:
    """What nanoGPT saves."""
    matrices = [name for name, value in GPT.items() if value.ndim > 1]
    vectors = [name for name, value in GPT.items() if value.ndim == 1]
    tree = {
        "model": {**GPT, "lm_head.weight": GPT["transformer.wte.weight"]},
        "optimizer": numbered(GPT, [matrices, vectors], betas=(0.9, 0.95)),
        "model_args": {
            "n_layer": 1,
            "n_head": 2,
            "n_embd": 4,
            "block_size": 3,
            "vocab_size": 5,
            "bias": False,
            "dropout": 0.0,
        },
        "iter_num": 3,
        "best_val_loss": np.array(2.5, np.float32),
        "config": {"out_dir": "out", "seed": None},
    }
    write_tree(folder / "ckpt.pt", tree)


def test_nanogpt_there_and_back(tmp_path: Path) -> None:
    nanogpt(tmp_path / "run")
    done = reshard.convert(tmp_path / "run", tmp_path / "u", "universal")
    assert not done.report.warnings
    again = reshard.convert(tmp_path / "u", tmp_path / "back", "nanogpt")
    assert not again.report.warnings
    wanted, found = leaves(tmp_path / "run"), leaves(tmp_path / "back")
    assert found == wanted
    assert list(found["ckpt.pt"]["model"]) == list(wanted["ckpt.pt"]["model"])


def gpt2(folder: Path) -> dict[str, Any]:
    """A `checkpoint-3` of the Trainer with GPT-2, whose linear layers are stored transposed."""
    weights = {}
    for name, value in GPT.items():
        is_linear = "attn" in name or "mlp" in name
        weights[name] = np.ascontiguousarray(value.T) if is_linear else value
        if value.ndim == 1:
            weights[name.replace("weight", "bias")] = value + np.float32(0.5)
        elif is_linear:
            weights[name.replace("weight", "bias")] = counted(value.shape[0], start=7)
    folder.mkdir(parents=True)
    _safetensors(folder / "model.safetensors", dict(sorted(weights.items())))
    groups = [
        [name for name in weights if name.endswith("weight") and "ln_" not in name],
        [name for name in weights if not name.endswith("weight") or "ln_" in name],
    ]
    write_tree(folder / "optimizer.pt", numbered(weights, groups))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    config = {
        "model_type": "gpt2",
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 4,
        "n_positions": 3,
        "vocab_size": 5,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def test_gpt2_of_the_trainer_becomes_one_of_nanogpt_and_back(tmp_path: Path) -> None:
    """Linear layers are turned, the head is there again, numbers follow the order of the model."""
    weights = gpt2(tmp_path / "run")
    done = reshard.convert(tmp_path / "run", tmp_path / "nano", "nanogpt")
    (facts,) = [item for item in done.report.warnings if item.code == "model-facts-left"]
    assert facts.notes == ('`activation_function` is "gelu_new"',)
    tree: Any = leaves(tmp_path / "nano")["ckpt.pt"]
    square = weights["transformer.h.0.attn.c_proj.weight"]
    assert tree["model"]["transformer.h.0.attn.c_proj.weight"][2] == square.T.tobytes()
    assert tree["model"]["transformer.h.0.attn.c_attn.weight"][1] == (12, 4)
    assert tree["model"]["lm_head.weight"] == tree["model"]["transformer.wte.weight"]
    assert len(tree["optimizer"]["state"]) == len(weights)
    assert tree["model_args"]["block_size"] == 3
    assert tree["model_args"]["bias"] is True
    again = reshard.open(tmp_path / "nano")
    assert again.aliases == {"lm_head.weight": "transformer.wte.weight"}
    reshard.convert(tmp_path / "nano", tmp_path / "back", "trainer")
    wanted, found = (
        plain(open_torch_file(tmp_path / where / "optimizer.pt").root) for where in ("run", "back")
    )
    assert found == wanted
    assert reshard.verify(tmp_path / "run", tmp_path / "back").ok


def test_nanogpt_without_biases_is_no_gpt2(tmp_path: Path) -> None:
    nanogpt(tmp_path / "run")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(tmp_path / "run", tmp_path / "out", "hf")
    assert [item.code for item in caught.value.diagnostics] == ["other-facts"]


def trainer(folder: Path) -> dict[str, Any]:
    """A `checkpoint-3` of transformers' Trainer; returns the weights."""
    shapes = {"q_proj": (4, 4), "k_proj": (4, 4), "v_proj": (4, 4), "o_proj": (4, 4)}
    weights = {"model.embed_tokens.weight": counted(6, 4)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for at, (name, shape) in enumerate(shapes.items()):
            weights[f"{prefix}self_attn.{name}.weight"] = counted(*shape, start=100 * at + layer)
        weights[f"{prefix}input_layernorm.weight"] = counted(4, start=7 * layer)
    weights["model.norm.weight"] = counted(4, start=70)
    folder.mkdir(parents=True)
    _safetensors(folder / "model.safetensors", dict(sorted(weights.items())))
    decay = [name for name in weights if "norm" not in name]
    rest = [name for name in weights if "norm" in name]
    write_tree(folder / "optimizer.pt", numbered(weights, [decay, rest]))
    write_tree(folder / "scheduler.pt", {"last_epoch": 3, "_last_lr": [0.1, 0.1]})
    write_tree(folder / "rng_state.pth", {"cpu": np.arange(8, dtype=np.uint8)})
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "max_steps": 9}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return weights


def test_states_of_another_step_than_the_trainer_states_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    trainer(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    assert reshard.open(folder).warnings == ()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4}))
    done = reshard.convert(folder, tmp_path / "out", "universal")
    assert [item.render() for item in done.report.warnings] == [
        "warning[steps-disagree]: the checkpoint states several numbers of steps; 4, by "
        "`global_step` in trainer_state.json, is taken\n"
        "  = note: 3 by the optimizer's states\n"
        "  = help: a loss scaler skips steps of the optimizer, and a schedule may count epochs; "
        "else files of two steps may lie together"
    ]
    assert reshard.open(folder).training.iteration == 4


def _safetensors(path: Path, tensors: dict[str, Any]) -> None:
    header, at, data = {}, 0, b""
    for name, value in tensors.items():
        raw = value.tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [at, at + len(raw)],
        }
        at += len(raw)
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_the_trainer_of_transformers_there_and_back(tmp_path: Path) -> None:
    weights = trainer(tmp_path / "checkpoint-3")
    checkpoint = reshard.open(tmp_path / "checkpoint-3")
    assert checkpoint.training.iteration == 3
    for name, value in weights.items():
        assert same(checkpoint.read(name), value)
        assert same(checkpoint.read(name, "exp_avg"), value * np.float32(0.5)), name
    done = reshard.convert(tmp_path / "checkpoint-3", tmp_path / "back", "trainer")
    assert not done.report.warnings
    for name in ("optimizer.pt", "scheduler.pt"):
        wanted, found = (
            plain(open_torch_file(tmp_path / where / name).root)
            for where in ("checkpoint-3", "back")
        )
        assert found == wanted
    assert json.loads((tmp_path / "back/trainer_state.json").read_text()) == {
        "global_step": 3,
        "max_steps": 9,
    }
    assert (tmp_path / "back/config.json").read_text() == '{"model_type": "llama"}'
    assert reshard.verify(tmp_path / "checkpoint-3", tmp_path / "back").ok


def test_names_that_are_sorted_and_no_order(tmp_path: Path) -> None:
    trainer(tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3/config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "checkpoint-3")
    assert str(caught.value).split("\n")[:3] == [
        "error[ambiguous-optimizer-ids]: the optimizer states in optimizer.pt cannot "
        "be given names",
        "  = note: the file of the weights sorts their names, so the model's order is not known",
        "  = note: number 1 has shape [4, 4]: it may be "
        "`model.layers.0.self_attn.k_proj.weight`, `model.layers.0.self_attn.o_proj.weight`, "
        "`model.layers.0.self_attn.q_proj.weight`, `model.layers.0.self_attn.v_proj.weight`, "
        "or one of 4 more",
    ]


def test_states_without_names_do_not_keep_weights_from_a_model_folder(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint-3"
    trainer(source)
    stated = {"model_type": "unheard_of", "architectures": ["Unheard"]}
    (source / "config.json").write_text(json.dumps(stated))
    done = reshard.convert(source, tmp_path / "out", "hf")
    assert done.next_step.startswith("transformers loads it")
    codes = [item.code for item in done.report.warnings]
    assert "ambiguous-optimizer-ids" in codes
    assert reshard.verify(source, tmp_path / "out", states="weights").ok
    with pytest.raises(ReshardError, match="ambiguous-optimizer-ids"):
        reshard.convert(source, tmp_path / "other", "universal")


def test_what_the_source_does_not_tell(tmp_path: Path) -> None:
    text = layout_file(tmp_path, HOME.partition('    "tok.w"')[0] + "}\n")
    write_tree(tmp_path / "w.pt", {"w": counted(2)})
    with pytest.raises(ReshardError) as caught:
        reshard.convert(tmp_path / "w.pt", tmp_path / "out", f"{text}:tp=1")
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[no-place]: the source does not record `iteration`, which rank0.pt has\n"
        " --> .../x.ucl:6:9\n"
        "  |\n"
        '6 |         run iteration = "step"\n'
        "  |         ^^^^^^^^^^^^^^^^^^^^^^ not known\n"
        "  |\n"
        "  = help: write `optional` behind it if it may be missing"
    )


NUMBERED = """
layout numbers {
    file "x.pt" {
        state param at "model/{name}"
        states at "opt/state/{number}/{state}"
        number by "opt/param_groups[{group}]/params"
    }
}
"""


def test_numbers_in_the_order_of_the_source(tmp_path: Path) -> None:
    text = layout_file(tmp_path, NUMBERED)
    write_tree(tmp_path / "one.pt", {"model": NET, "optimizer": numbered(NET, [list(NET)])})
    done = reshard.convert(tmp_path / "one.pt", tmp_path / "out", str(text))
    (warning,) = [item for item in done.report.warnings if item.code == "order-assumed"]
    assert warning.render() == (
        "warning[order-assumed]: parameters are numbered in the order in which the source lists "
        "them\n"
        "  = note: an optimizer takes states by number: what loads them must register its "
        "parameters in the same order\n"
        '  = help: say the order in the layout: `order "embed", "layers.{i}.attn", ...`'
    )
    assert same(
        reshard.open(tmp_path / "out", layout=text).read("b.weight", "exp_avg"),
        NET["b.weight"] * np.float32(0.5),
    )


def test_a_parameter_without_a_number(tmp_path: Path) -> None:
    text = layout_file(tmp_path, NUMBERED)
    byname = tmp_path / "y.ucl"
    byname.write_text(
        'layout named { file "y.pt" { state param at "model/{name}" states at "opt/{name}/{state}" '
        'run param_groups = "groups" named by "groups[{group}]/names" } }'
    )
    names = {"a": counted(2), "c": counted(3)}
    opt = {name: {"exp_avg": value} for name, value in names.items()}
    write_tree(
        tmp_path / "y.pt", {"model": names, "opt": opt, "groups": [{"lr": 1, "names": ["a"]}]}
    )
    with pytest.raises(ReshardError) as caught:
        reshard.convert(tmp_path / "y.pt", tmp_path / "out", str(text), layout=byname)
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[no-groups]: `c` has no number, since it is in no parameter group of the source\n"
        " --> .../x.ucl:5:9\n"
        "  |\n"
        '5 |         states at "opt/state/{number}/{state}"\n'
        "  |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ by number\n"
        "  |\n"
        "  = note: states are written by number here, group by group\n"
        "  = help: leave the states out with `--states weights`"
    )


def test_master_weights_are_the_weights_where_torchs_optimizer_has_none(
    tmp_path: Path, fixture_checkpoint: Callable[[str], Path]
) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    done = reshard.convert(source, tmp_path / "out", "verl:dp=2")
    (said,) = [w.render() for w in done.report.warnings if w.code == "weights-of-masters"]
    assert said == (
        "warning[weights-of-masters]: 20 tensors are written from the optimizer's master weights\n"
        "  = note: the optimizers of torch have no state `master`; a run in mixed precision has "
        "fp32 weights\n"
        "  = note: `model.embed_tokens.weight`\n"
        "  = note: `model.layers.{0,1}.self_attn.q_proj.weight` (2 tensors)\n"
        "  = note: `model.layers.{0,1}.self_attn.k_proj.weight` (2 tensors)\n"
        "  = note: `model.layers.{0,1}.self_attn.v_proj.weight` (2 tensors)\n"
        "  = note: `model.layers.{0,1}.self_attn.o_proj.weight` (2 tensors)\n"
        "  = note: `model.layers.{0,1}.mlp.gate_proj.weight` (2 tensors)\n"
        "  = help: `--states param,exp_avg,exp_avg_sq,step` writes the weights of the source"
    )
    here, there = reshard.open(source), reshard.open(tmp_path / "out")
    assert there.states == ("param", "exp_avg", "exp_avg_sq", "step")
    for name in here.parameters:
        assert there.read(name).tobytes() == here.read(name, "master").tobytes()
        assert there.read(name, "exp_avg").tobytes() == here.read(name, "exp_avg").tobytes()
    others = ["param", "exp_avg", "exp_avg_sq", "step"]
    reshard.convert(source, tmp_path / "others", "verl:dp=2", states=others)
    assert reshard.verify(source, tmp_path / "others", states=others).ok


def test_weights_that_are_stored_as_master_weights_alone(
    tmp_path: Path, fixture_checkpoint: Callable[[str], Path]
) -> None:
    source = fixture_checkpoint("z3_bf16_dp3_untied") / "ckpt"
    reshard.convert(source, tmp_path / "out", "verl:dp=2")
    assert reshard.verify(source, tmp_path / "out").ok


STAGED = """
layout staged {
    mesh pp
    file "stage{pp}.pt" {
        state param      at "model/{name}"
        states           at "optimizer/state/{number}/{state}"
        number           by "optimizer/param_groups[{group}]/params"
        run param_groups = "optimizer/param_groups"
        run lr_scheduler = "scheduler"
    }
}
"""


def staged(folder: Path, epochs: tuple[int, int] = (3, 3)) -> None:
    """Two stages with parameters, numbers, and a scheduler of their own; their rates are alike."""
    whole = {"a": counted(3, 2), "b": counted(3), "c": counted(2, 2), "d": counted(4)}
    for stage, names in enumerate((("a", "b"), ("c", "d"))):
        model = {name: whole[name] for name in names}
        optimizer: Any = numbered(model, [[name] for name in names])
        for group, rate in zip(optimizer["param_groups"], (0.1, 0.2), strict=True):
            group["lr"] = rate
        tree = {"model": model, "optimizer": optimizer}
        scheduler = {"last_epoch": epochs[stage], "base_lrs": [0.1, 0.2]}
        write_tree(folder / f"stage{stage}.pt", {**tree, "scheduler": scheduler})


def test_stages_have_groups_of_their_own(tmp_path: Path) -> None:
    staged(tmp_path / "run")
    text = layout_file(tmp_path, STAGED)
    training = reshard.open(tmp_path / "run", layout=text).training
    groups = [(group["lr"], group["params"]) for group in training.param_groups]
    assert groups == [(0.1, ["a", "c"]), (0.2, ["b", "d"])]
    assert training.state == {"lr_scheduler": {"last_epoch": 3, "base_lrs": [0.1, 0.2]}}
    reshard.convert(tmp_path / "run", tmp_path / "one", f"{text}:pp=1", layout=text)
    assert reshard.verify(tmp_path / "run", tmp_path / "one", layout=text).ok


def test_stages_of_two_runs(tmp_path: Path) -> None:
    staged(tmp_path / "run", (3, 4))
    text = layout_file(tmp_path, STAGED)
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run", layout=text)
    assert str(caught.value) == (
        "error[mixed-runs]: the learning rate schedulers differ between ranks\n"
        "  = note: `last_epoch` is 3 in stage 0, and 4 in stage 1\n"
        "  = help: the files may be from different runs or steps; use the files of one run and "
        "one step"
    )


def test_the_model_folder_in_a_step_of_verl(tmp_path: Path) -> None:
    """`huggingface/` has the configuration and the tokenizer, which other targets need."""
    model = tiny_llama.write(tmp_path / "model")
    (model / "tokenizer.json").write_text("{}")
    reshard.convert(model, tmp_path / "run", "verl:dp=2")
    files = {"config.json", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "run" / "huggingface").iterdir()} == files
    assert not files & {path.name for path in (tmp_path / "run").iterdir()}
    for form in ("dcp", "universal", "verl:dp=1", "accelerate"):
        there = tmp_path / form.partition(":")[0]
        reshard.convert(tmp_path / "run", there, form)
        reshard.convert(there, tmp_path / f"{there.name}-hf", "hf")
        made = tmp_path / f"{there.name}-hf"
        assert reshard.verify(model, made).ok
        assert all((made / name).read_bytes() == (model / name).read_bytes() for name in files)
    assert {path.name for path in (tmp_path / "verl" / "huggingface").iterdir()} == files
    assert (tmp_path / "dcp" / "tokenizer.json").is_file()


def test_layers_on_stages(tmp_path: Path, fixture_checkpoint: Callable[[str], Path]) -> None:
    """Each stage numbers the parameters of its own layers; what it has is read under that."""
    source = fixture_checkpoint("nanotron_tp1_z0") / "ckpt"
    text = layout_file(
        tmp_path,
        STAGED.replace("layout staged {", "layout staged of llama like hf {").replace(
            "mesh pp", "mesh pp\n    place layer over pp"
        ),
    )
    reshard.convert(source, tmp_path / "whole", "universal", names="hf")
    reshard.convert(tmp_path / "whole", tmp_path / "run", f"{text}:pp=3")
    for tree in leaves(tmp_path / "run").values():
        assert len(tree["model"]) == 12
        listed = [group["params"] for group in tree["optimizer"]["param_groups"]]
        assert listed == [list(range(9)), [9, 10, 11]]
    assert reshard.verify(tmp_path / "run", tmp_path / "whole", layout=text).ok
    here, there = (
        reshard.open(tmp_path / "run", layout=text).training,
        reshard.open(tmp_path / "whole").training,
    )
    assert [len(group.members) for group in here.param_groups] == [23, 7]
    for one, other in zip(here.param_groups, there.param_groups, strict=True):
        assert (one.settings, {*one.members}) == (other.settings, {*other.members})
