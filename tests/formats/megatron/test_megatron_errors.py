"""Whole messages about checkpoints of Megatron that are not read, or are odd."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import Forge, namespace, save

import reshard
from reshard.api.source import open_source
from reshard.errors import ReshardError

GRID = Forge(tp=2, pp=2, stages=(1, 1))
Place = tuple[int, int, int]


def message(path: Path, here: Path, **settings: Any) -> list[str]:
    """What opening a checkpoint says."""
    with pytest.raises(ReshardError) as caught:
        reshard.open(path, **settings)
    return str(caught.value).replace(str(here), "...").split("\n")


def changed(forge: Forge, change: Callable[[Place, dict[str, Any]], None]) -> Forge:
    """A run with other files."""
    return Forge(**{**{f: getattr(forge, f) for f in forge.__dataclass_fields__}, "change": change})


def rank(root: Path, name: str = "mp_rank_00_000") -> Path:
    """The file of a rank."""
    return root / "iter_0000003" / name / "model_optim_rng.pt"


def test_a_missing_rank(tmp_path: Path) -> None:
    GRID.write(tmp_path)
    shutil.rmtree(rank(tmp_path, "mp_rank_01_001").parent)
    assert message(tmp_path, tmp_path) == [
        "error[missing-ranks]: .../iter_0000003 lacks the files of 1 ranks",
        "  = note: first: tp=1, pp=1; the run had tp=2, pp=2, ep=1",
        "  = note: 3 rank folders were found",
        "  = help: copy the folders of all ranks",
    ]


def test_a_missing_expert_rank(tmp_path: Path) -> None:
    Forge(tp=2, ep=2, etp=1, experts=2).write(tmp_path)
    shutil.rmtree(rank(tmp_path, "mp_rank_01_001").parent)
    assert message(tmp_path, tmp_path)[:2] == [
        "error[missing-ranks]: .../iter_0000003 lacks the files of 2 ranks",
        "  = note: first: tp=1, pp=0; the run had tp=2, pp=1, ep=2",
    ]


def test_a_folder_without_its_file(tmp_path: Path) -> None:
    GRID.write(tmp_path)
    rank(tmp_path).unlink()
    assert message(tmp_path, tmp_path) == [
        "error[missing-ranks]: .../iter_0000003/mp_rank_00_000 has no `model_optim_rng.pt`",
        "  = help: copy the folders of all ranks",
    ]


def test_a_folder_that_is_no_rank(tmp_path: Path) -> None:
    GRID.write(tmp_path)
    (tmp_path / "iter_0000003" / "mp_rank_old").mkdir()
    assert message(tmp_path, tmp_path) == [
        "error[foreign-rank]: `mp_rank_old` in .../iter_0000003 is not the folder of a rank",
        "  = note: names are `mp_rank_TT`, `mp_rank_TT_PPP`, `mp_rank_TT_PPP_EEE`",
        "  = help: move it elsewhere if it does not belong to the checkpoint",
    ]


def test_a_rank_of_a_larger_run(tmp_path: Path) -> None:
    GRID.write(tmp_path)
    shutil.copytree(rank(tmp_path).parent, rank(tmp_path, "mp_rank_02_000").parent)
    assert message(tmp_path, tmp_path) == [
        "error[foreign-rank]: `mp_rank_02_000` in .../iter_0000003 does not belong to a rank of "
        "this run",
        "  = note: the run had tp=2, pp=2, ep=1",
        "  = help: move it elsewhere if it belongs to another run",
    ]


def test_files_of_two_iterations(tmp_path: Path) -> None:
    GRID.write(tmp_path)

    def later(place: Place, tree: dict[str, Any]) -> None:
        tree["iteration"] = 4 if place == (1, 1, 0) else 3

    changed(GRID, later).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[mixed-runs]: the settings of the run differ between ranks",
        "  = note: `iteration` is 3 in mp_rank_00_000/model_optim_rng.pt, "
        "and 4 in mp_rank_01_001/model_optim_rng.pt",
        "  = help: the files may be from different runs or steps; use the files of one run and "
        "one step",
    ]


def test_a_truncated_file(tmp_path: Path) -> None:
    path = rank(GRID.write(tmp_path))
    path.write_bytes(path.read_bytes()[:-100])
    assert message(tmp_path, tmp_path)[0] == (
        "error[truncated]: .../iter_0000003/mp_rank_00_000/model_optim_rng.pt ends before its "
        "directory"
    )


def test_a_tracker_without_a_number(tmp_path: Path) -> None:
    GRID.write(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("<html>")
    assert message(tmp_path, tmp_path) == [
        "error[bad-tracker]: .../latest_checkpointed_iteration.txt contains `<html>`, which is "
        "not an iteration",
        "  = help: write the number of an iteration into it, or choose one with `--step`",
    ]


def test_a_tracker_of_an_iteration_that_is_not_there(tmp_path: Path) -> None:
    GRID.write(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert message(tmp_path, tmp_path) == [
        "error[step-missing]: iteration `7` is not in ...",
        "  = note: there are: iter_0000003",
        "  = help: choose one of them with `--step`",
    ]
    assert reshard.open(tmp_path, step="3").training.iteration == 3
    assert reshard.open(tmp_path, step="iter_0000003").training.iteration == 3


def test_an_iteration_that_did_not_end(tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000003"
    folder.mkdir()
    (folder / "__0_0.distcp").touch()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    assert message(tmp_path, tmp_path) == [
        "error[incomplete-megatron]: .../iter_0000003 is an incomplete Megatron checkpoint",
        "  = note: it has neither rank folders nor `metadata.json`",
        "  = help: `metadata.json` is written last: without it, the save did not finish",
    ]


def test_no_arguments(tmp_path: Path) -> None:
    changed(Forge(), lambda _, tree: tree.pop("args")).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[no-arguments]: .../iter_0000003/mp_rank_00/model_optim_rng.pt has no `args`",
        "  = note: they state how the run was sharded, and reshard does not guess it",
        "  = help: give a layout of your own with `--layout`, or save with Megatron's arguments",
    ]
    layout = tmp_path / "own.ucl"
    layout.write_text('layout own {\n    mesh tp\n    "**" = [...]\n}\n')
    assert len(reshard.open(tmp_path, layout=layout).tensors) > 10


def test_no_model(tmp_path: Path) -> None:
    changed(Forge(), lambda _, tree: tree.pop("model")).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[no-model]: mp_rank_00/model_optim_rng.pt contains no model",
        "  = note: its keys are args, checkpoint_version, iteration, optimizer, "
        "opt_param_scheduler",
    ]


def test_a_name_that_is_not_known(tmp_path: Path) -> None:
    def more(_: Place, tree: dict[str, Any]) -> None:
        tree["model"]["decoder.layers.0.mixer.strange"] = np.zeros((4, 4), np.float32)
        del tree["optimizer"]

    changed(Forge(tp=2), more).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[uncovered-parameter]: how `decoder.layers.0.mixer.strange` is cut over tp is not "
        "known",
        "  = note: the run had tp=2, ep=1",
        "  = help: say it in a layout of your own, and give it with `--layout FILE`",
    ]
    own = tmp_path / "own.ucl"
    text = open_source(Forge(tp=2).write(tmp_path / "known")).layout_text
    own.write_text(text.replace("\n}", '\n    "**.strange" = [_, cols over tp]\n}'))
    assert reshard.open(tmp_path, layout=own).tensors["decoder.layers.0.mixer.strange"].shape == (
        4,
        8,
    )


def test_an_mlp_of_another_kind_than_stated(tmp_path: Path) -> None:
    Forge(gated=False, args={"swiglu": True}).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[glu-mismatch]: `decoder.layers.0.mlp.linear_fc1.weight` has 12 rows for 12 columns "
        "of the layer behind it",
        "  = note: the run had a gated MLP, which has 24",
        "  = note: `swiglu` in the arguments of .../iter_0000003/mp_rank_00/model_optim_rng.pt",
        "  = help: say how it lies in a layout of your own, and give it with `--layout`",
    ]


def test_interleaved_halves(tmp_path: Path) -> None:
    Forge(experts=2, args={"moe_mlp_glu_interleave_size": 4}).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[interleaved-glu]: gate and up of the experts lie interleaved in blocks of 4",
        "  = note: `moe_mlp_glu_interleave_size` in the arguments of "
        ".../iter_0000003/mp_rank_00/model_optim_rng.pt",
        "  = help: load it in Megatron, and save it without `--moe-mlp-glu-interleave-size`",
    ]


def test_experts_over_more_ranks_than_the_rest(tmp_path: Path) -> None:
    forge = Forge(tp=2, experts=2, args={"expert_tensor_parallel_size": 4})
    assert message(forge.write(tmp_path), tmp_path) == [
        "error[unsupported-expert-tp]: experts are cut over 4 ranks, dense layers over 2",
        "  = note: then the names of the folders do not show which rank has which shard",
        "  = help: save it as `torch_dist`, which states where each part belongs",
    ]


def test_copies_that_differ(tmp_path: Path) -> None:
    def drift(place: Place, tree: dict[str, Any]) -> None:
        if place[0]:
            norm = tree["model"]["decoder.layers.0.input_layernorm.weight"].copy()
            norm[3] += 1
            tree["model"]["decoder.layers.0.input_layernorm.weight"] = norm

    root = changed(Forge(tp=2), drift).write(tmp_path / "run")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(root, tmp_path / "out", "universal")
    lines = str(caught.value).replace(str(tmp_path), "...").split("\n")
    assert lines[0] == (
        "error[replica-mismatch]: copies of `decoder.layers.0.input_layernorm.weight` (param) "
        "differ"
    )
    assert any("[3]" in line for line in lines)


def test_a_tied_copy_that_differs(tmp_path: Path) -> None:
    def drift(place: Place, tree: dict[str, Any]) -> None:
        if place[1]:
            tree["model"]["output_layer.weight"] = tree["model"]["output_layer.weight"] + 1

    root = changed(Forge(pp=2, stages=(1, 1), tied=True), drift).write(tmp_path / "run")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(root, tmp_path / "out", "universal")
    assert str(caught.value).startswith(
        "error[replica-mismatch]: copies of `embedding.word_embeddings.weight` (param) differ"
    )


# The optimizer: what is wrong with it leaves the weights readable.


def weights_alone(root: Path, out: Path) -> None:
    """`--states weights` goes on where the optimizer cannot be read."""
    reshard.convert(root, out, "universal", states="weights")
    assert reshard.open(out).states == ("param",)
    assert reshard.inspect(root).to_json()["states"]


def test_layer_wise_optimizer_files(tmp_path: Path) -> None:
    root = tmp_path / "run"
    Forge().write(root)
    save(rank(root, "mp_rank_00").with_name("layer_wise_optimizer_0.pt"), {})
    assert message(root, root) == [
        "error[unsupported-optimizer]: .../iter_0000003/mp_rank_00 stores its optimizer in a form "
        "that reshard does not read",
        "  = note: found `layer_wise_optimizer_0.pt`",
        "  = note: `layer_wise_optimizer_*.pt` and `optim.pt` contain the shards of data-parallel "
        "ranks",
        "  = help: load it in Megatron, and save it as `torch_dist`",
        "  = help: or keep the weights with `--states weights`",
    ]
    weights_alone(root, tmp_path / "out")


def test_optimizers_of_before_2023(tmp_path: Path) -> None:
    root = tmp_path / "run"
    changed(Forge(), lambda _, tree: tree.pop("optimizer")).write(root)
    path = rank(root, "mp_rank_00")
    path.rename(path.with_name("model_rng.pt"))
    save(path.parent.with_name("mp_rank_00_000") / "optim.pt", {})
    assert message(root, root)[:2] == [
        "error[unsupported-optimizer]: .../iter_0000003/mp_rank_00 stores its optimizer in a form "
        "that reshard does not read",
        "  = note: found `mp_rank_00_000/optim.pt`",
    ]
    weights_alone(root, tmp_path / "out")


def test_a_group_of_too_few(tmp_path: Path) -> None:
    root = tmp_path / "run"
    changed(Forge(), lambda _, tree: tree["optimizer"]["param_groups"][0]["params"].pop()).write(
        root
    )
    assert message(root, root) == [
        "error[ambiguous-optimizer-ids]: a param group of mp_rank_00/model_optim_rng.pt numbers 9 "
        "parameters where 10 fit it",
        "  = note: wd_mult=1.0, is_expert_parallel=False",
        "  = note: first that fits: `embedding.word_embeddings.weight`",
        "  = help: exclude what is no parameter with `--leave-out NAME`",
        "  = help: leave the optimizer out with `--states weights`",
    ]
    weights_alone(root, tmp_path / "out")


def test_a_state_of_another_shape(tmp_path: Path) -> None:
    def transpose(_: Place, tree: dict[str, Any]) -> None:
        tree["optimizer"]["state"][4]["exp_avg"] = np.zeros((8, 24), np.float32)

    changed(Forge(), transpose).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[ambiguous-optimizer-ids]: state 4 of the optimizer does not fit "
        "`decoder.layers.0.mlp.linear_fc2.weight`",
        "  = note: `exp_avg` has shape [8, 24], the parameter [8, 12]",
        "  = note: in mp_rank_00/model_optim_rng.pt; the optimizer numbers its parameters and "
        "does not name them",
        "  = help: leave the optimizer out with `--states weights`",
    ]


def test_three_optimizers(tmp_path: Path) -> None:
    def triple(_: Place, tree: dict[str, Any]) -> None:
        tree["optimizer"] = [tree["optimizer"]] * 3

    changed(Forge(), triple).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[ambiguous-optimizer-ids]: mp_rank_00/model_optim_rng.pt has 3 optimizers, and it "
        "is unknown which parameters each one has",
        "  = note: 0 ways of sharing 19 parameters fit",
        "  = note: optimizers number their parameters and do not name them",
        "  = help: leave the optimizer out with `--states weights`",
    ]


def test_an_optimizer_that_is_none(tmp_path: Path) -> None:
    def strange(_: Place, tree: dict[str, Any]) -> None:
        tree["optimizer"] = {"kind": "strange"}

    changed(Forge(), strange).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[unknown-optimizer]: the optimizer in mp_rank_00/model_optim_rng.pt is of an "
        "unknown kind",
        "  = note: optimizer 0 has no param groups",
        "  = help: leave it out with `--states weights`",
    ]


def test_states_that_are_in_no_file(tmp_path: Path) -> None:
    def distributed(_: Place, tree: dict[str, Any]) -> None:
        groups = [{"wd_mult": 1.0, "step": 3}, {"wd_mult": 0.0, "step": 3}]
        tree["optimizer"] = {"optimizer": {"param_groups": groups}}

    changed(Forge(), distributed).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[missing-file]: .../iter_0000003/mp_rank_00 has an optimizer without states",
        "  = note: the states of a distributed optimizer are in `distrib_optim.pt` beside the "
        "model",
        "  = help: copy `distrib_optim.pt` of every rank",
        "  = help: or keep the weights with `--states weights`",
    ]


# What is worth knowing.


def odd(root: Path, here: Path, **settings: Any) -> list[str]:
    """The oddities of a checkpoint."""
    found = reshard.inspect(root, **settings).oddities
    return "\n".join(item.render() for item in found).replace(str(here), "...").split("\n")


def test_a_release(tmp_path: Path) -> None:
    def release(_: Place, tree: dict[str, Any]) -> None:
        del tree["optimizer"]
        tree["iteration"] = 0

    changed(Forge(), release).write(tmp_path)
    (tmp_path / "iter_0000003").rename(tmp_path / "release")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    assert odd(tmp_path, tmp_path) == [
        "warning[no-optimizer]: `release` contains weights, but no optimizer",
        "  = note: a release, or a run with `--no-save-optim`, stores none",
    ]


def test_an_iteration_newer_than_the_tracker(tmp_path: Path) -> None:
    Forge(iteration=5).write(tmp_path)
    Forge().write(tmp_path)
    assert odd(tmp_path, tmp_path) == [""]
    assert odd(tmp_path, tmp_path, step="5") == [
        "warning[untracked-iteration]: iteration 5 is newer than 3, which "
        "`latest_checkpointed_iteration.txt` names",
        "  = note: Megatron writes that file last: the save of this iteration may not have "
        "finished",
        "  = help: compare with iteration 3, the last one whose save certainly finished",
    ]


def test_a_renamed_folder(tmp_path: Path) -> None:
    Forge().write(tmp_path)
    (tmp_path / "iter_0000003").rename(tmp_path / "iter_0000002")
    assert odd(tmp_path / "iter_0000002", tmp_path) == [
        "warning[other-iteration]: `iter_0000002` contains iteration 3",
        "  = note: Megatron takes the number from the files, not from the folder's name",
    ]


def test_padding_of_the_vocabulary(tmp_path: Path) -> None:
    root = Forge(tp=2, args={"vocab_size": 21}).write(tmp_path)
    assert odd(root, tmp_path) == [
        "warning[padded-vocabulary]: 3 of 24 rows of the vocabulary are padding",
        "  = note: the arguments say `vocab_size=21`; the rows behind it are left out",
        "  = note: how many there are depends on tp, and they belong to no token",
    ]
    checkpoint = reshard.open(root)
    assert checkpoint.tensors["output_layer.weight"].shape == (21, 8)


def test_a_vocabulary_that_the_rows_contradict(tmp_path: Path) -> None:
    root = Forge(tp=2, args={"vocab_size": 3, "make_vocab_size_divisible_by": 4}).write(tmp_path)
    assert odd(root, tmp_path) == [""]
    assert reshard.open(root).tensors["output_layer.weight"].shape == (24, 8)


def test_arguments_that_are_a_dict(tmp_path: Path) -> None:
    def plain(_: Place, tree: dict[str, Any]) -> None:
        tree["args"] = dict(tree["args"].attributes)

    assert len(reshard.open(changed(Forge(), plain).write(tmp_path)).tensors) == 19
    assert namespace(a=1).attributes == {"a": 1}


def test_ranks_behind_links_to_other_disks_are_read(tmp_path: Path) -> None:
    run = GRID.write(tmp_path / "run")
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    for name in ("mp_rank_00_000", "mp_rank_01_001"):
        folder = rank(run, name).parent
        shutil.move(folder, elsewhere / name)
        folder.symlink_to(elsewhere / name)
    assert not reshard.convert(run, tmp_path / "out", "universal").report.warnings
    opened = reshard.open(run)
    for name, state in (
        ("embedding.word_embeddings.weight", "param"),
        ("output_layer.weight", "exp_avg"),
    ):
        assert np.array_equal(np.asarray(opened.read(name, state)), GRID.whole()[name, state])
