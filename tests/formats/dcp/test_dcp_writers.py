"""Other writers' metadata: versions of torch, OLMo-core, ByteCheckpoint, and how keys are named."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

import reshard
from formats.dcp.dcp_forge import Forge, blob, counted, made, tensor_pickle
from reshard.errors import ReshardError
from reshard.formats.recognize import recognize
from reshard.storage.dcp_metadata import read_metadata
from reshard.storage.inert import Global, Record
from reshard.storage.pickle_writer import write_pickle

HALVES = [((0, 0), (2, 3)), ((2, 0), (2, 3))]


def test_metadata_of_torch_2_0_lacks_attributes_and_has_other_classes(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt", version=None, properties="dict")
    folder = forge.tensor("a", counted(4, 3), HALVES).write(storage_meta=None)
    checkpoint = reshard.open(folder)
    assert np.array_equal(checkpoint.read("a"), counted(4, 3))


def test_olmo_core_pickles_a_class_of_its_own(tmp_path: Path) -> None:
    step = tmp_path / "step12"
    forge = Forge(
        step / "model_and_optim",
        storage="olmo_core.distributed.checkpoint.filesystem",
        version=None,
    )
    forge.tensor("model.w", counted(4, 3), HALVES, path=("model", "w"))
    forge.tensor("optim.state.w.exp_avg", counted(4, 3), path=("optim", "state", "w", "exp_avg"))
    forge.object("optim.param_groups.0.lr", 0.5, path=("optim", "param_groups", 0, "lr"))
    forge.object("optim.param_groups.0.params", ["w"], path=("optim", "param_groups", 0, "params"))
    forge.write()
    (step / "model_and_optim" / "__7_3.distcp").touch()  # a thread that had nothing to write
    (step / "train").mkdir()
    trainer = blob(write_pickle({"global_step": 12, "max_steps": 20}))
    (step / "train" / "rank0.pt").write_bytes(trainer)
    (step / "config.json").write_text('{"model": {"d_model": 3}}')
    (step / ".metadata.json").write_text('{"version": "2.0"}')
    checkpoint = reshard.open(tmp_path)  # the folder of the run
    assert np.array_equal(checkpoint.read("w"), counted(4, 3))
    assert np.array_equal(checkpoint.read("w", "exp_avg"), counted(4, 3))
    assert checkpoint.training.iteration == 12
    assert checkpoint.training.param_groups == ({"lr": 0.5, "params": ["w"]},)
    found = checkpoint.inspect()
    assert set(found.side_files) == {".metadata.json", "config.json", "train/rank0.pt"}
    assert (found.left, found.oddities) == ((), ())


def test_bytecheckpoint_stores_bytes_alone(tmp_path: Path) -> None:
    module = "bytecheckpoint.checkpointer.meta_type"
    for name, keys in (("model", ("w",)), ("optimizer", ("state.w.exp_avg", "state.w.step"))):
        forge = Forge(tmp_path / name, metadata=module, storage=module, version=None, raw=True)
        for key in keys:
            array = counted() if key.endswith("step") else counted(4, 3)
            parts = key.split(".")
            forge.tensor(key, array, HALVES if array.ndim else None, path=tuple(parts))
        if name == "optimizer":
            forge.object("param_groups.0.lr", 0.5, path=("param_groups", 0, "lr"))
        forge.write(bytecheckpoint_version="1.0.0", user_defined_dict={})
    (tmp_path / "extra_state").mkdir()
    (tmp_path / "extra_state" / "extra_state_rank_0.pt").write_bytes(blob(write_pickle({"s": 1})))
    checkpoint = reshard.open(tmp_path)
    assert np.array_equal(checkpoint.read("w"), counted(4, 3))
    assert np.array_equal(checkpoint.read("w", "exp_avg"), counted(4, 3))
    assert checkpoint.read("w", "step") == 0
    assert checkpoint.training.param_groups == ({"lr": 0.5},)
    assert checkpoint.inspect().side_files == ("extra_state/extra_state_rank_0.pt",)
    found = reshard.verify(tmp_path)
    assert not found.checksums
    assert found.to_text().splitlines()[2] == (
        "  the format has no checksums: changed bytes would go unnoticed"
    )


def test_columns_first_is_read_as_it_is_meant(tmp_path: Path) -> None:
    folder = Forge(tmp_path / "ckpt").tensor("a", counted(4, 3), HALVES, turned=True).write()
    assert np.array_equal(reshard.open(folder).read("a"), counted(4, 3))


def test_a_grid_in_any_order_with_empty_boxes(tmp_path: Path) -> None:
    boxes = [((0, 0), (2, 2)), ((4, 0), (0, 3)), ((2, 0), (2, 2)), ((0, 2), (4, 1))]
    folder = Forge(tmp_path / "ckpt").tensor("a", counted(4, 3), boxes).write()
    assert np.array_equal(reshard.open(folder).read("a"), counted(4, 3))


def test_wide_zip_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    folder = Forge(tmp_path / "ckpt").tensor("a", counted(4, 30)).write()
    assert np.array_equal(reshard.open(folder).read("a"), counted(4, 30))


def test_the_rule_before_torch_2_4_keeps_lists_without_tensors_whole(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    forge.tensor("model.w", counted(4, 3), path=("model", "w"))
    forge.tensor("optim.state.w.exp_avg", counted(4, 3), path=("optim", "state", "w", "exp_avg"))
    forge.object("optim.state.w.step", 7, path=("optim", "state", "w", "step"))
    groups = [{"lr": 0.5, "params": ["w"]}]
    forge.object("optim.param_groups", groups, path=("optim", "param_groups"))
    checkpoint = reshard.open(forge.write())
    assert checkpoint.training.param_groups == ({"lr": 0.5, "params": ["w"]},)
    assert checkpoint.read("w", "step") == 7
    assert checkpoint.training.iteration == 7


def _counted_twice(folder: Path, steps: int, last_epoch: int) -> Forge:
    forge = Forge(folder)
    forge.tensor("model.w", counted(4, 3), path=("model", "w"))
    forge.tensor("optim.state.w.exp_avg", counted(4, 3), path=("optim", "state", "w", "exp_avg"))
    forge.object("optim.state.w.step", steps, path=("optim", "state", "w", "step"))
    forge.object("lr_scheduler.last_epoch", last_epoch, path=("lr_scheduler", "last_epoch"))
    return forge


def test_the_optimizers_own_count_goes_before_that_of_the_schedule(tmp_path: Path) -> None:
    checkpoint = reshard.open(_counted_twice(tmp_path / "ckpt", 3, 7).write())
    assert checkpoint.training.iteration == 3
    assert [item.render() for item in checkpoint.warnings] == [
        "warning[steps-disagree]: the checkpoint states several numbers of steps; 3, by the "
        "optimizer's states, is taken\n"
        "  = note: 7 by `lr_scheduler.last_epoch`\n"
        "  = help: a loss scaler skips steps of the optimizer, and a schedule may count epochs; "
        "else files of two steps may lie together"
    ]
    assert reshard.open(_counted_twice(tmp_path / "same", 7, 7).write()).warnings == ()


def test_what_a_trainer_states_goes_before_what_is_counted(tmp_path: Path) -> None:
    forge = _counted_twice(tmp_path / "ckpt", 3, 7)
    forge.object("train_state.step", 4, path=("train_state", "step"))
    checkpoint = reshard.open(forge.write())
    assert checkpoint.training.iteration == 4
    assert [item.notes for item in checkpoint.warnings] == [("3 by the optimizer's states",)]


def test_without_paths_the_optimizer_tells_where_the_model_is(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    forge.tensor("model.w", counted(2)).tensor("optim.state.w.exp_avg", counted(2))
    checkpoint = reshard.open(forge.write())
    assert checkpoint.tensors["w"].dtypes.keys() == {"param", "exp_avg"}


def test_without_paths_and_optimizer_keys_are_names(tmp_path: Path) -> None:
    folder = Forge(tmp_path / "ckpt").tensor("model.w", counted(2)).write()
    assert list(reshard.open(folder).tensors) == ["model.w"]


def test_a_model_by_any_name_is_found_by_what_the_optimizer_trains(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    forge.tensor("net.a.w", counted(2), path=("net", "a.w"))
    forge.tensor("net.a.seen", counted(1, dtype="int64"), path=("net", "a.seen"))
    forge.tensor("noise", counted(3), path=("noise",))
    forge.tensor("opt.state.a.w.exp_avg", counted(2), path=("opt", "state", "a.w", "exp_avg"))
    forge.object("opt.param_groups.0.lr", 0.5, path=("opt", "param_groups", 0, "lr"))
    tensors = reshard.open(forge.write()).tensors
    assert {name: set(info.dtypes) for name, info in tensors.items()} == {
        "a.w": {"param", "exp_avg"},
        "a.seen": {"param"},
        "noise": {"extra"},
    }


def test_dots_in_keys_are_no_levels(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    forge.tensor("model.model.w", counted(2), path=("model", "model.w"))
    forge.tensor("model.optim.w", counted(2), path=("model", "optim.w"))
    assert list(reshard.open(forge.write()).tensors) == ["model.w", "optim.w"]


def test_what_modules_keep_besides_is_no_parameter(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt").tensor("model.w", counted(2), path=("model", "w"))
    path = ("model", "layer._extra_state")
    forge.tensor("model.layer._extra_state", counted(5, dtype="int32"), path=path)
    forge.object("model.other._extra_state", None, path=("model", "other._extra_state"))
    source = forge.write()
    reshard.convert(source, tmp_path / "out", "dcp:dp=2")
    for folder in (source, tmp_path / "out"):
        checkpoint = reshard.open(folder)
        states = {name: set(info.dtypes) for name, info in checkpoint.tensors.items()}
        assert states == {"w": {"param"}, "model.layer._extra_state": {"extra"}}
        assert checkpoint.training.framework is not None
        assert checkpoint.training.framework["objects"] == {"model.other._extra_state": None}
    found = read_metadata(tmp_path / "out")
    assert found.paths["model.layer._extra_state"] == path


def test_objects_of_ranks_that_differ_are_all_kept(tmp_path: Path) -> None:
    for rank in range(2):
        forge = Forge(tmp_path / "ckpt", version=None, rank=rank)
        forge.tensor("a", counted(2))
        forge.object("seed", rank)
        forge.write(f"__{rank}.metadata")
    framework = reshard.open(tmp_path / "ckpt").training.framework
    assert framework is not None
    assert framework["objects"] == {"seed": 0}
    assert framework["rank_objects"] == {"__1.metadata": {"seed": 1}}


def test_the_last_whole_step_of_a_run_is_read(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        forge = Forge(tmp_path / f"step-{step}")
        forge.tensor("w", np.full((2,), step, "float32")).write()
    (tmp_path / "step-21").mkdir()
    (tmp_path / "step-21" / "__0_0.distcp").touch()
    newest = reshard.open(tmp_path)
    assert newest.read("w")[0] == 20
    [oddity] = newest.inspect().oddities
    assert oddity.render() == (
        f"warning[incomplete-dcp]: {tmp_path}/step-21 was not written to the end, so step 20 is "
        "taken\n"
        "  = note: it has no `.metadata`, which is written last"
    )
    assert reshard.open(tmp_path, step="3").read("w")[0] == 3
    assert reshard.open(tmp_path, step="step-1").read("w")[0] == 1


def test_a_trained_model_beside_its_steps_is_what_its_folder_is(tmp_path: Path) -> None:
    Forge(tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0").tensor("w", counted(2)).write()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5}')
    (tmp_path / "notes.safetensors").touch()
    assert recognize(tmp_path) == "dcp"
    assert reshard.open(tmp_path).training.iteration == 5
    (tmp_path / "model.safetensors").touch()
    assert recognize(tmp_path) == "hf"
    assert recognize(tmp_path / "checkpoint-5") == "dcp"


def test_what_lies_beside_is_no_part_of_it(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt").tensor("w", counted(2))
    folder = forge.write()
    (folder / "__5_0.distcp").write_bytes(b"of an earlier save")
    (folder / "__6_0.distcp").touch()
    [oddity] = reshard.open(folder).inspect().oddities
    assert oddity.render() == (
        "warning[stale-files]: 1 file is no part of the checkpoint, and is not read\n"
        "  = note: `__5_0.distcp` is not named in `.metadata`\n"
        "  = help: an earlier save with more ranks leaves such files"
    )


def test_nothing_that_a_pickle_names_is_called(tmp_path: Path) -> None:
    trap = Record("os", "system", (f"touch {tmp_path}/trapped",))
    folder = Forge(tmp_path / "ckpt").tensor("w", counted(2)).object("state", trap).write()
    checkpoint = reshard.open(folder)
    assert checkpoint.training.framework is not None
    assert "$record" in checkpoint.training.framework["objects"]["state"]  # type: ignore[index]
    assert not (tmp_path / "trapped").exists()


def test_a_number_that_an_object_holds_is_no_path(tmp_path: Path) -> None:
    index = made("torch.distributed.checkpoint.metadata", "MetadataIndex", fqn="w")
    forge = Forge(tmp_path / "ckpt").tensor("w", counted(2))
    with pytest.raises(ReshardError, match="bad-metadata"):
        reshard.open(forge.write(storage_data={index: Global("os", "system")}))
    assert tensor_pickle(counted(2)).startswith(b"\x80\x02")


def test_data_that_was_changed_after_the_file_that_is_written_last(tmp_path: Path) -> None:
    """A save that ended halfway over an older one of equal shapes, or a copy without times."""
    folder = Forge(tmp_path / "ckpt").tensor("w", counted(4, 3), HALVES).write()
    at = 1_772_359_200
    os.utime(folder / ".metadata", (at, at))
    os.utime(folder / "__0_0.distcp", (at + 2, at + 2))
    os.utime(folder / "__0_1.distcp", (at - 3600, at - 3600))
    assert reshard.inspect(folder).oddities == ()
    os.utime(folder / "__0_0.distcp", (at + 5400, at + 5400))
    [oddity] = reshard.inspect(folder).oddities
    assert oddity.render() == (
        "warning[newer-data]: 1 of 2 data files was changed after `.metadata`, which is written "
        "last\n"
        "  = note: `.metadata` is of 2026-03-01 10:00:00 UTC\n"
        "  = note: `__0_0.distcp` is of 2026-03-01 11:30:00 UTC\n"
        "  = note: if a later save ended halfway, the file may hold tensors of another step\n"
        "  = note: a copy that does not keep times makes such a difference, too\n"
        "  = help: if the folder was copied, compare it with the original, or copy it with its "
        "times"
    )


def test_data_that_the_ranks_write_without_asking_each_other_is_as_old_as_its_list(
    tmp_path: Path,
) -> None:
    folder = Forge(tmp_path / "ckpt", rank=0).tensor("a", counted(2)).write("__0.metadata")
    Forge(folder, rank=1).tensor("b", counted(2)).write("__1.metadata")
    for rank, at in ((0, 1_000), (1, 2_000)):
        for name in (f"__{rank}.metadata", f"__{rank}_0.distcp"):
            os.utime(folder / name, (at, at))
    assert reshard.inspect(folder).oddities == ()
