"""What is written as a distributed checkpoint: the same numbers, and the boxes that torch cuts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

import reshard
from formats.dcp.dcp_forge import Forge, counted
from formats.dcp.test_dcp_cases import CASES
from reshard.errors import ReshardError
from reshard.storage.dcp_metadata import read_metadata

Find = Callable[[str], Path]
Boxes = dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def boxes(folder: Path) -> Boxes:
    """The boxes of every tensor that are not empty."""
    return {
        tensor.name: sorted((c.lo, c.size) for c in tensor.chunks if all(c.size))
        for tensor in read_metadata(folder).tensors
    }


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_changes_nothing(
    name: str, fixture_checkpoint: Find, tmp_path: Path
) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    reshard.convert(source, tmp_path / "out", "dcp:dp=3")
    result = reshard.verify(source, tmp_path / "out")
    assert result.ok, result.to_text()
    before, after = reshard.open(source).training, reshard.open(tmp_path / "out").training
    assert after.param_groups == before.param_groups
    assert after.iteration == before.iteration
    for key in ("objects", "files"):
        assert (after.framework or {}).get(key) == (before.framework or {}).get(key)


def test_by_way_of_a_universal_checkpoint_the_bytes_are_the_same(
    fixture_checkpoint: Find, tmp_path: Path
) -> None:
    source = fixture_checkpoint("dcp_titan_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "universal", "universal")
    reshard.convert(source, tmp_path / "direct", "dcp:dp=2")
    reshard.convert(tmp_path / "universal", tmp_path / "detour", "dcp:dp=2")
    for file in sorted((tmp_path / "direct").glob("*")):
        assert file.read_bytes() == (tmp_path / "detour" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("source", "target", "like"),
    [
        ("dcp_dp2", "dcp:dp=2", "dcp_dp2"),
        ("dcp_fsdp1_dp2", "dcp:dp=3", "dcp_fsdp1_dp3_mesh"),
        ("dcp_tp2_dp2", "dcp:dp=2", "dcp_dp2"),
        ("dcp_dp4_odd", "dcp:dp=4", "dcp_dp4_odd"),
    ],
)
def test_boxes_are_those_that_torch_writes(
    source: str, target: str, like: str, fixture_checkpoint: Find, tmp_path: Path
) -> None:
    reshard.convert(fixture_checkpoint(source) / "ckpt", tmp_path / "out", target)
    made, wanted = boxes(tmp_path / "out"), boxes(fixture_checkpoint(like) / "ckpt")
    for name in ("model.turned", "model.brief"):
        # Buffers of floats: FSDP leaves them whole, but the files do not tell what they are.
        assert sum(prod(size) for _, size in made.pop(name, [])) == sum(
            prod(size) for _, size in wanted.pop(name, [])
        )
    assert made == wanted


def test_a_model_is_cut_over_tensor_parallel_ranks_as_torch_cuts_it(
    fixture_checkpoint: Find, tmp_path: Path
) -> None:
    source = fixture_checkpoint("dcp_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "out", "dcp:dp=2,tp=2", names="hf", settings=HEADS)
    assert boxes(tmp_path / "out") == boxes(fixture_checkpoint("dcp_tp2_dp2") / "ckpt")
    assert reshard.verify(source, tmp_path / "out").ok


def test_a_layout_without_a_model_says_what_is_cut(
    fixture_checkpoint: Find, tmp_path: Path
) -> None:
    rows = ("embed_tokens", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
    rules = [f'"**{name}.weight" = [rows over tp, ...]' for name in rows]
    rules += [f'"**{name}.weight" = [_, columns over tp]' for name in ("o_proj", "down_proj")]
    text = "\n".join(["layout mine {", "mesh tp", *rules, '"**norm.weight" = [...]', "}"])
    (tmp_path / "mine.ucl").write_text(text, encoding="utf-8")
    source = fixture_checkpoint("dcp_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "out", "dcp:dp=2,tp=2", layout=tmp_path / "mine.ucl")
    assert boxes(tmp_path / "out") == boxes(fixture_checkpoint("dcp_tp2_dp2") / "ckpt")


def test_tensor_parallel_ranks_that_nothing_tells_how_to_cut(
    fixture_checkpoint: Find, tmp_path: Path
) -> None:
    with pytest.raises(ReshardError) as caught:
        reshard.convert(fixture_checkpoint("dcp_dp2") / "ckpt", tmp_path / "out", "dcp:tp=2")
    assert str(caught.value) == (
        "error[dcp-tensor-parallel]: layout `dcp` does not say what tensor-parallel ranks cut\n"
        "  = note: target `dcp:tp=2`\n"
        "  = note: no axis of it lies over `tp`\n"
        "  = help: leave `tp` out: PyTorch loads chunks of any shape into a tensor-parallel "
        "model\n"
        "  = help: or name the model's layout with `--names`, or give one that cuts over `tp` "
        "with `--layout`"
    )


def test_a_flattened_optimizer_has_its_settings_for_each_parameter(
    fixture_checkpoint: Find, tmp_path: Path
) -> None:
    source = fixture_checkpoint("dcp_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "flat", "dcp:dp=2,flatten=1")
    reshard.convert(tmp_path / "flat", tmp_path / "nested", "dcp:dp=2,flatten=0")
    real = read_metadata(fixture_checkpoint("dcp_dp2_flat") / "ckpt")
    flat = read_metadata(tmp_path / "flat")
    assert {t.name: flat.paths[t.name] for t in flat.tensors} == {
        t.name: real.paths[t.name] for t in real.tensors
    }
    settings = {o.name: flat.paths[o.name] for o in flat.objects if "param_groups" in o.name}
    assert settings == {o.name: real.paths[o.name] for o in real.objects}
    nested, first = read_metadata(tmp_path / "nested"), read_metadata(source)
    assert {t.name for t in nested.tensors} == {t.name for t in first.tensors}
    assert {o.name for o in nested.objects} == {o.name for o in first.objects}


def test_what_a_deepspeed_run_trains_is_the_master_weights(
    fixture_checkpoint: Find, tmp_path: Path
) -> None:
    case = fixture_checkpoint("z2_bf16_dp2_tied")
    made = reshard.convert(case / "ckpt", tmp_path / "out", "dcp:dp=2")
    out = reshard.open(tmp_path / "out")
    source = reshard.open(case / "ckpt")
    for name in source.parameters:
        assert (out.read(name, "master") == source.read(name, "master")).all()
        assert (out.read(name, "exp_avg") == source.read(name, "exp_avg")).all()
    fates = {(f.name, f.state): (f.kind, f.why) for f in made.report.fates}
    assert fates["model.norm.weight", "param"] == (
        "folded",
        "the master weights, from which it is rounded",
    )
    [warning] = made.report.warnings
    assert warning.render() == (
        "warning[dcp-left]: what only deepspeed resumes with is not written\n"
        "  = note: it is `zero_stage`, `compute_dtype`, `ds_config`, `counters`, `client_state`, "
        "`universal_checkpoint_info`, `other`, `saved_over`, `loss_scaler`, `clip_grad`\n"
        "  = help: keep the source, or convert to `universal`, which keeps it"
    )


def test_settings_that_the_source_does_not_tell(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt").tensor("model.w", counted(2), path=("model", "w"))
    for state in ("exp_avg", "exp_avg_sq"):
        path = ("optim", "state", "w", state)
        forge.tensor(f"optim.state.w.{state}", counted(2), path=path)
    for key, value in (("lr", 0.5), ("params", ["w"])):
        path = ("optim", "param_groups", 0, key)
        forge.object(f"optim.param_groups.0.{key}", value, path=path)
    made = reshard.convert(forge.write(), tmp_path / "out", "dcp")
    [group] = reshard.open(tmp_path / "out").training.param_groups
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.5, 0.01, None)
    [warning] = made.report.warnings
    assert warning.render() == (
        "warning[dcp-defaults]: the source does not record all hyper-parameters of the optimizer\n"
        "  = note: written: `betas` as (0.9, 0.999), `eps` as 1e-08, `weight_decay` as 0.01, "
        "`amsgrad` as False, `foreach` as None, `maximize` as False, "
        "`capturable` as False, `differentiable` as False, `fused` as None, "
        "`decoupled_weight_decay` as True\n"
        "  = note: PyTorch's loader asks for every one that the optimizer of the run has, and "
        "takes it over\n"
        "  = help: set them in the param groups again after loading"
    )


def test_objects_that_differ_from_rank_to_rank(tmp_path: Path) -> None:
    for rank in range(2):
        forge = Forge(tmp_path / "ckpt", rank=rank).tensor("a", counted(2))
        forge.object("seed", rank).write(f"__{rank}.metadata")
    made = reshard.convert(tmp_path / "ckpt", tmp_path / "out", "dcp")
    assert [item.render() for item in made.report.warnings] == [
        "warning[dcp-rank-objects]: objects that differ from rank to rank are written as the "
        "first rank has them\n"
        "  = note: they are `seed`\n"
        "  = help: keep the source, or convert to `universal`, which keeps all of them"
    ]


def test_tied_weights_are_stored_under_both_names_and_trained_under_one(
    fixture_checkpoint: Find, tmp_path: Path
) -> None:
    case = fixture_checkpoint("z1_bf16_dp4_tied")
    reshard.convert(case / "ckpt", tmp_path / "out", "dcp:dp=2")
    keys = {tensor.name for tensor in read_metadata(tmp_path / "out").tensors}
    assert {"model.lm_head.weight", "model.model.embed_tokens.weight"} <= keys
    assert "optim.state.model.embed_tokens.weight.exp_avg" in keys
    assert "optim.state.lm_head.weight.exp_avg" not in keys
    out = reshard.open(tmp_path / "out")
    assert out.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert out.inspect().proof.copies == 1


def test_a_way_by_distributed_checkpoints_loses_nothing(fixture_checkpoint: Find) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    assert reshard.roundtrip(source, ["dcp:dp=3", "accelerate:dp=2"]).ok


def test_torchtitan_finds_all_that_it_asks_for(fixture_checkpoint: Find, tmp_path: Path) -> None:
    source = fixture_checkpoint("dcp_dp2") / "ckpt"
    made = reshard.convert(
        source, tmp_path / "out", "torchtitan:dp=2", settings=HEADS, model="llama"
    )
    found = read_metadata(tmp_path / "out" / "step-2")
    keys = {item.name for item in (*found.tensors, *found.objects)}
    assert {
        "tok_embeddings.weight",
        "layers.1.attention.qkv_linear.wq.weight",
        "optimizer.state.layers.1.attention.qkv_linear.wq.weight.exp_avg",
        "optimizer.param_groups.norm.weight.initial_lr",
        "optimizer.param_groups.norm.weight.decoupled_weight_decay",
        "lr_scheduler.last_epoch",
        "train_state.step",
        "train_state.ntokens_seen",
    } <= keys
    path = found.paths["optimizer.state.norm.weight.exp_avg"]
    assert path == ("optimizer", "state.norm.weight.exp_avg")
    assert reshard.open(tmp_path / "out").training.iteration == 2
    assert [item.render() for item in made.report.warnings] == [
        "warning[dcp-defaults]: the source does not record all hyper-parameters of the optimizer\n"
        "  = note: written: `initial_lr` as `lr`\n"
        "  = note: PyTorch's loader asks for every one that the optimizer of the run has, and "
        "takes it over\n"
        "  = help: set them in the param groups again after loading",
        "warning[titan-counters]: the source does not record all counters that torchtitan resumes "
        "with\n"
        "  = note: written: `train_state.ntokens_seen` as 0\n"
        "  = help: state the step with `torchtitan:step=N` where it is not known",
        "warning[titan-dataloader]: there is no state of torchtitan's data loader, which it asks "
        "for\n"
        '  = help: resume with `--checkpoint.exclude_from_loading=["dataloader"]`',
    ]


def test_a_step_of_torchtitan_goes_back_as_it_was(fixture_checkpoint: Find, tmp_path: Path) -> None:
    source = fixture_checkpoint("dcp_titan_dp2") / "ckpt"
    made = reshard.convert(source, tmp_path / "out", "torchtitan:dp=2,step=7", settings=HEADS)
    first, found = read_metadata(source / "step-2"), read_metadata(tmp_path / "out" / "step-7")
    there = {o.name for o in found.objects if not o.name.startswith("optimizer.")}
    assert there == {o.name for o in first.objects if not o.name.startswith("optimizer.")}
    assert {"train_state.step", "train_state.ntokens_seen"} <= {t.name for t in found.tensors}
    assert [item.code for item in made.report.warnings] == ["dcp-defaults"]


def test_olmo_core_has_its_folder_its_mark_and_its_names(
    fixture_checkpoint: Find, tmp_path: Path
) -> None:
    source = fixture_checkpoint("dcp_dp2") / "ckpt"
    made = reshard.convert(
        source, tmp_path / "out", "olmo-core:dp=2", settings=HEADS, model="llama"
    )
    assert (tmp_path / "out" / ".metadata.json").is_file()
    keys = {item.name for item in read_metadata(tmp_path / "out" / "model_and_optim").tensors}
    assert "model.blocks.0.attention.w_q.weight" in keys
    assert "optim.state.lm_head.w_out.weight.exp_avg" in keys
    [warning] = made.report.warnings
    assert warning.render() == (
        "warning[olmo-trainer-state]: there is no state of OLMo-core's trainer to write\n"
        "  = note: it reads the step and the data that were seen from `train/rank0.pt`\n"
        "  = help: give OLMo-core the folder `model_and_optim` inside of it as `load_path`"
    )
    again = reshard.convert(tmp_path / "out", tmp_path / "hf", "dcp", names="hf", settings=HEADS)
    assert again.report.warnings == ()
    assert reshard.verify(source, tmp_path / "hf").ok


def test_accelerate_has_two_folders(fixture_checkpoint: Find, tmp_path: Path) -> None:
    source = fixture_checkpoint("dcp_accelerate_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "out", "accelerate:dp=3")
    for folder in ("pytorch_model_fsdp_0", "optimizer_0"):
        there, here = read_metadata(source / folder), read_metadata(tmp_path / "out" / folder)
        assert {t.name for t in there.tensors} == {t.name for t in here.tensors}
        assert {o.name for o in there.objects} == {o.name for o in here.objects}
    made, first = (folder / "scheduler.bin" for folder in (tmp_path / "out", source))
    assert made.read_bytes() == first.read_bytes()
    assert reshard.verify(source, tmp_path / "out").ok


def test_weights_alone_need_no_optimizer(fixture_checkpoint: Find, tmp_path: Path) -> None:
    source = fixture_checkpoint("dcp_accelerate_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "out", "accelerate", states="weights")
    assert not (tmp_path / "out" / "optimizer_0").exists()
    assert reshard.verify(source, tmp_path / "out", states="weights").ok


def test_a_plan_takes_memory_by_the_number_of_tensors_and_little_of_it(tmp_path: Path) -> None:
    """Bytes at the peak for each of two chunks; a tuple of the bytes of `.metadata` took most."""
    forge = Forge(tmp_path / "in")
    for index in range(300):
        forge.tensor(f"layers.{index}.weight", counted(2, 2))
    source = forge.write()
    reshard.plan(source, "dcp:dp=2")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        reshard.plan(source, "dcp:dp=2")
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak / 300 < 24_000


MUON: dict[str, object] = {"momentum": 0.9, "nesterov": True}
ADAMW: dict[str, object] = {
    "betas": (0.9, 0.99),
    "eps": 1e-6,
    "weight_decay": 0.0,
    "amsgrad": False,
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}


def two_optimizers(folder: Path, *, flat: bool, momentum: bool = True) -> Path:
    """A step with an optimizer for matrices, and another one with two groups for the rest.

    Args:  momentum: whether the first has states.
    """
    forge = Forge(folder)
    groups: dict[str, list[tuple[list[str], dict[str, object]]]] = {
        "optim_muon": [(["b.w", "d.w"], MUON | {"lr": 0.5})],
        "optim_adamw": [
            (["a.w"], ADAMW | {"lr": 0.25}),
            (["c.w"], ADAMW | {"lr": 0.125, "weight_decay": 0.5}),
        ],
    }
    for at, name in enumerate("abcd"):
        weight = counted(4, 3) + at
        forge.tensor(f"model.{name}.w", weight, path=("model", f"{name}.w"))

    def path(key: str, *rest: str | int) -> tuple[str | int, ...]:
        return (key, ".".join(map(str, rest))) if flat else (key, *rest)

    for key, of_key in groups.items():
        first = ("momentum_buffer",) if momentum else ()
        states = first if key == "optim_muon" else ("exp_avg", "exp_avg_sq")
        for index, (names, settings) in enumerate(of_key):
            for name in names:
                for at, state in enumerate(states):
                    place = path(key, "state", name, state)
                    value = counted(4, 3) + 10 * at + ord(name[0])
                    forge.tensor(".".join(map(str, place)), value, path=place)
            for owner in names if flat else [index]:
                for setting, value in settings.items():
                    place = path(key, "param_groups", owner, setting)
                    forge.object(".".join(map(str, place)), value, path=place)
            if not flat:
                place = path(key, "param_groups", index, "params")
                forge.object(".".join(map(str, place)), names, path=place)
    return forge.write()


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("flat", [False, True])
def test_each_of_two_optimizers_keeps_its_key(tmp_path: Path, flat: bool, momentum: bool) -> None:
    source = two_optimizers(tmp_path / "run", flat=flat, momentum=momentum)
    done = reshard.convert(source, tmp_path / "out", "dcp:dp=2")
    assert done.report.warnings == ()
    reshard.convert(source, tmp_path / "universal", "universal")
    reshard.convert(tmp_path / "universal", tmp_path / "back", "dcp")
    first = read_metadata(source)
    for name in ("out", "back"):
        assert read_metadata(tmp_path / name).paths == first.paths
        assert reshard.diff(source, tmp_path / name).same
        there, here = reshard.open(source).training, reshard.open(tmp_path / name).training
        assert here.param_groups == there.param_groups


def test_two_optimizers_change_their_form_under_their_keys(tmp_path: Path) -> None:
    source = two_optimizers(tmp_path / "run", flat=False)
    flat = two_optimizers(tmp_path / "wanted", flat=True)
    reshard.convert(source, tmp_path / "flat", "dcp:flatten=1")
    assert read_metadata(tmp_path / "flat").paths == read_metadata(flat).paths
