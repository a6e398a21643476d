"""Whole messages about checkpoints of DeepSpeed that are not read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deepspeed_forge import Run, Tensor, floats, save

from reshard.dtypes import DType
from reshard.errors import Exit, ReshardError
from reshard.formats.deepspeed.read import read
from reshard.storage.inert import Record

GROUPS = [{"w": (3, 4), "b": (5,)}]
SHARDED = {0: [{"w": (2, 4), "n": (4,)}], 1: [{"w": (2, 4), "n": (4,)}]}
COPIES = {rank: {"n": [1.0, 2.0, 3.0, 4.0]} for rank in (0, 1)}

Scenario = Callable[[Path], Path]
SCENARIOS: dict[str, Scenario] = {}


def scenario(make: Scenario) -> Scenario:
    """Register a function that makes a checkpoint which is not read."""
    SCENARIOS[make.__name__] = make
    return make


def info(**entries: object) -> dict[str, object]:
    """What a model file says of tensor parallelism."""
    return {"universal_checkpoint_info": {"universal_checkpoint_version": 0.4, **entries}}


# Which step.


@scenario
def latest_names_nothing(path: Path) -> Path:
    folder = Run(path, GROUPS).write()
    (folder / "latest").write_text("global_step9")
    return folder


@scenario
def several_steps(path: Path) -> Path:
    Run(path, GROUPS, steps=3).write()
    folder = Run(path, GROUPS, steps=20).write()
    (folder / "latest").unlink()
    return folder


@scenario
def universal_folder(path: Path) -> Path:
    folder = Run(path, GROUPS).write()
    parameter = folder / "global_step3" / "zero" / "w"
    parameter.mkdir(parents=True)
    (parameter / "fp32.pt").touch()
    return folder


# Files.


@scenario
def no_model_file(path: Path) -> Path:
    folder = Run(path, GROUPS).write()
    (folder / "global_step3" / "mp_rank_00_model_states.pt").unlink()
    return folder


@scenario
def no_optimizer_file(path: Path) -> Path:
    folder = Run(path, GROUPS).write()
    for file in (folder / "global_step3").glob("*_optim_states.pt"):
        file.unlink()
    return folder


@scenario
def missing_optimizer_file(path: Path) -> Path:
    folder = Run(path, GROUPS, dp=4).write()
    (folder / "global_step3" / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    return folder


@scenario
def missing_model_parallel_rank(path: Path) -> Path:
    folder = Run(path, SHARDED, tp=2).write()
    (folder / "global_step3" / "mp_rank_01_model_states.pt").unlink()
    return folder


@scenario
def two_prefixes(path: Path) -> Path:
    folder = Run(path, GROUPS).write()
    for file in list((folder / "global_step3").glob("zero_*")):
        shutil.copy(file, file.with_name(f"bf16_{file.name}"))
    return folder


@scenario
def files_of_more_ranks(path: Path) -> Path:
    folder = Run(path, GROUPS).write()
    more = Run(path / "more", GROUPS, dp=4).write()
    for rank in (2, 3):
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        shutil.copy(more / "global_step3" / name, folder / "global_step3" / name)
    return folder


@scenario
def stages_side_by_side(path: Path) -> Path:
    folder = Run(path, GROUPS).write()
    other = Run(path / "other", GROUPS, stage=3).write()
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt"
    shutil.copy(other / "global_step3" / name, folder / "global_step3" / name)
    return folder


@scenario
def another_step_s_model_file(path: Path) -> Path:
    run = Run(path, SHARDED, tp=2)
    run.models["mp_rank_01_model_states.pt"]["global_steps"] = 4
    return run.write()


@scenario
def another_stage_s_optimizer_files(path: Path) -> Path:
    run = Run(path, GROUPS, stage=2)
    run.models["mp_rank_00_model_states.pt"]["ds_config"] = {"zero_optimization": {"stage": 1}}
    return run.write()


@scenario
def partition_of_another_size(path: Path) -> Path:
    run = Run(path, GROUPS)
    for name in run.shards:
        run.optimizer(name)["partition_count"] = [3]
    return run.write()


@scenario
def truncated_file(path: Path) -> Path:
    folder = Run(path, GROUPS).write()
    file = folder / "global_step3" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    os.truncate(file, file.stat().st_size // 2)
    return folder


# Contents.


@scenario
def unknown_stage(path: Path) -> Path:
    run = Run(path, GROUPS)
    for name in run.shards:
        inner = run.optimizer(name)
        inner["zero_stage"] = Record("deepspeed.runtime.zero.config", "ZeroStageEnum", (4,))
    return run.write()


@scenario
def old_form_of_partitions(path: Path) -> Path:
    run = Run(path, GROUPS)
    for name in run.shards:
        inner = run.optimizer(name)
        inner["local_sub_partitions_of_fp32_groups"] = inner.pop("single_partition_of_fp32_groups")
    return run.write()


@scenario
def no_param_shapes(path: Path) -> Path:
    run = Run(path, GROUPS)
    run.models["mp_rank_00_model_states.pt"]["param_shapes"] = None
    return run.write()


@scenario
def not_a_model_file(path: Path) -> Path:
    run = Run(path, GROUPS)
    run.models["mp_rank_00_model_states.pt"] = {"weights": {}, "step": 3}
    return run.write()


@scenario
def unexpected_content(path: Path) -> Path:
    run = Run(path, GROUPS)
    run.optimizer("zero_pp_rank_0_mp_rank_00_optim_states.pt")["group_paddings"] = "none"
    return run.write()


@scenario
def no_partition(path: Path) -> Path:
    run = Run(path, GROUPS)
    del run.optimizer("zero_pp_rank_0_mp_rank_00_optim_states.pt")["base_optimizer_state"]
    return run.write()


@scenario
def other_shapes(path: Path) -> Path:
    run = Run(path, GROUPS)
    run.models["mp_rank_00_model_states.pt"]["param_shapes"] = [{"w": (4, 4), "b": (5,)}]
    return run.write()


@scenario
def other_shapes_at_stage_3(path: Path) -> Path:
    run = Run(path, GROUPS, stage=3)
    for root in run.models.values():
        root["param_shapes"] = [{"w": (4, 4), "b": (5,)}]
    return run.write()


@scenario
def frozen_that_does_not_add_up(path: Path) -> Path:
    run = Run(path, GROUPS, stage=3)
    for root in run.models.values():
        root["frozen_param_shapes"] = {"f": (7,)}
        root["frozen_param_fragments"] = {"f": floats([1.0, 2.0, 3.0])}
    return run.write()


@scenario
def slices_elsewhere(path: Path) -> Path:
    run = Run(path, GROUPS)
    address = Record("deepspeed.utils.tensor_fragment", "fragment_address", (), "newobj")
    address.state.append({"numel": 10, "start": 2})
    inner = run.optimizer("zero_pp_rank_0_mp_rank_00_optim_states.pt")
    inner["param_slice_mappings"] = [{"w": address}]
    return run.write()


@scenario
def steps_that_differ(path: Path) -> Path:
    run = Run(path, GROUPS)
    inner = run.optimizer("zero_pp_rank_1_mp_rank_00_optim_states.pt")
    inner["base_optimizer_state"]["state"][0]["step"] = floats([4.0], ())
    return run.write()


@scenario
def a_state_that_one_rank_lacks(path: Path) -> Path:
    run = Run(path, GROUPS)
    inner = run.optimizer("zero_pp_rank_1_mp_rank_00_optim_states.pt")
    del inner["base_optimizer_state"]["state"][0]["exp_avg"]
    return run.write()


@scenario
def states_on_nvme(path: Path) -> Path:
    run = Run(path, GROUPS, stage=3)
    for root in run.models.values():
        zero = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}
        root["ds_config"] = {"zero_optimization": zero}
    return run.write()


@scenario
def mics(path: Path) -> Path:
    run = Run(path, GROUPS, stage=3)
    for root in run.models.values():
        root["ds_config"] = {"zero_optimization": {"stage": 3, "mics_shard_size": 2}}
    return run.write()


# States without ZeRO.


def plain(path: Path, model: dict[str, object], optimizer: dict[str, object]) -> Path:
    """A run without ZeRO."""
    run = Run(path, [{}], dp=1)
    run.shards.clear()
    root = run.models["mp_rank_00_model_states.pt"]
    root.update(module=model, optimizer=optimizer, param_shapes=None)
    root["ds_config"] = {"zero_optimization": {"stage": 0}}
    return run.write()


@scenario
def numbers_that_fit_two_orders(path: Path) -> Path:
    weights = {name: floats([1.0, 2.0]) for name in ("a", "b", "c")}
    state = {number: {"exp_avg": floats([0.5, 0.5])} for number in (0, 1)}
    groups = [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}]
    return plain(path, dict(weights), {"state": state, "param_groups": groups})


@scenario
def numbers_that_fit_no_order(path: Path) -> Path:
    weights = {"a": floats([1.0, 2.0]), "b": floats([1.0])}
    state = {0: {"exp_avg": floats([0.5])}, 1: {"exp_avg": floats([0.5, 0.5])}}
    groups = [{"lr": 0.1, "params": [0, 1]}]
    return plain(path, dict(weights), {"state": state, "param_groups": groups})


@scenario
def state_of_another_shape(path: Path) -> Path:
    state = {0: {"exp_avg": floats([0.5, 0.5]), "rows": floats([0.5])}}
    inner = {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}
    optimizer = {"optimizer_state_dict": inner, "fp32_groups_flat": [floats([1.0, 2.0])]}
    return plain(path, {"a": floats([1.0, 2.0])}, optimizer)


@scenario
def masters_of_fewer_parameters(path: Path) -> Path:
    inner = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    optimizer = {"optimizer_state_dict": inner, "fp32_groups": [[floats([1.0, 2.0])]]}
    return plain(path, {"a": floats([1.0, 2.0]), "b": floats([1.0, 2.0])}, optimizer)


# Tensor parallelism.


@scenario
def nothing_said_of_ranks(path: Path) -> Path:
    return Run(path, SHARDED, tp=2).write()


@scenario
def copies_that_no_list_has(path: Path) -> Path:
    return Run(path, SHARDED, tp=2, values=COPIES, model=info()).write()


@scenario
def ranks_that_say_otherwise(path: Path) -> Path:
    run = Run(path, SHARDED, tp=2, model=info())
    run.models["mp_rank_01_model_states.pt"].update(info(tp_replicated_parameter_patterns=["n"]))
    return run.write()


@scenario
def two_patterns(path: Path) -> Path:
    return Run(
        path, SHARDED, tp=2, model=info(tp_replicated_parameter_patterns=["n", ".*"])
    ).write()


@scenario
def pattern_that_is_none(path: Path) -> Path:
    return Run(path, SHARDED, tp=2, model=info(tp_replicated_parameter_patterns=["n("])).write()


@scenario
def unsupported_by_deepspeed(path: Path) -> Path:
    unsupported = {"^w$": "replicated experts are not tracked"}
    return Run(
        path, SHARDED, tp=2, model=info(autotp_unsupported_parameter_patterns=unsupported)
    ).write()


@scenario
def sub_params_of_another_size(path: Path) -> Path:
    sub = [{"patterns": ["w"], "shape": ((4, 2), 4), "partition_dim": 0}]
    return Run(path, SHARDED, tp=2, model=info(parameter_with_sub_params=sub)).write()


def affine(**piece: object) -> dict[str, object]:
    """An affine map of `w` whose every rank has one piece."""
    own = {"shape": [2, 4], "source": [0, [4, 1]], "dest": [0, [4, 1]], "locations": [0], **piece}
    ranks = {rank: {"shard_shape": own["shape"], "pieces": [own]} for rank in (0, 1)}
    return {"version": 1, "params": {"^w$": {"logical_shape": [4, 4], "ranks": ranks}}}


@scenario
def scaled_pieces(path: Path) -> Path:
    return Run(path, SHARDED, tp=2, model=info(affine_map=affine(scale=0.5))).write()


@scenario
def pieces_of_another_shard(path: Path) -> Path:
    return Run(path, SHARDED, tp=2, model=info(affine_map=affine(shape=[1, 4]))).write()


@scenario
def pieces_that_are_no_box(path: Path) -> Path:
    return Run(path, SHARDED, tp=2, model=info(affine_map=affine(source=[0, [5, 1]]))).write()


@scenario
def affine_map_of_the_future(path: Path) -> Path:
    return Run(path, SHARDED, tp=2, model=info(affine_map={"version": 2, "params": {}})).write()


# Pipelines and experts.


@scenario
def layer_that_fits_two_ties(path: Path) -> Path:
    names = {"tied_modules.a.weight": (2,), "tied_modules.b.weight": (2,)}
    run = Run(path, [names], dp=1)
    run.models["mp_rank_00_model_states.pt"]["module"] = None
    folder = run.write()
    for layer in (0, 1):
        save(run.folder / f"layer_{layer:02d}-model_states.pt", {"weight": floats([1.0, 2.0])})
    return folder


@scenario
def layer_without_file(path: Path) -> Path:
    run = Run(path, [{"0.weight": (2,), "1.weight": (2,)}], dp=1)
    run.models["mp_rank_00_model_states.pt"]["module"] = None
    folder = run.write()
    save(run.folder / "layer_00-model_states.pt", {"weight": floats([1.0, 2.0])})
    return folder


@scenario
def expert_without_file(path: Path) -> Path:
    run = Run(path, GROUPS)
    folder = run.write()
    for expert in (0, 2):
        name = f"m.deepspeed_moe.experts.deepspeed_experts.{expert}.w"
        file = f"layer_0_expert_{expert}_mp_rank_00_model_states.pt"
        save(run.folder / file, {name: floats([1.0])})
    return folder


@scenario
def last_experts_without_files(path: Path) -> Path:
    run = Run(path, GROUPS, model={"num_experts": [2, 4]})
    folder = run.write()
    for layer, expert in ((0, 0), (0, 1), (1, 0), (1, 1)):
        name = f"m.{layer}.deepspeed_moe.experts.deepspeed_experts.{expert}.w"
        file = f"layer_{layer}_expert_{expert}_mp_rank_00_model_states.pt"
        save(run.folder / file, {name: floats([1.0])})
    return folder


@scenario
def layer_of_experts_without_files(path: Path) -> Path:
    return Run(path, GROUPS, model={"num_experts": [2]}).write()


@scenario
def stage_3_ranks_with_other_parameters(path: Path) -> Path:
    run = Run(path, GROUPS, stage=3)
    root = list(run.models.values())[1]
    root["param_shapes"] = [{"w": (3, 4), "c": (5,)}]
    return run.write()


@scenario
def experts_out_of_order(path: Path) -> Path:
    placement = {"ranks": [{"rank": 0, "experts": [0, 2]}, {"rank": 1, "experts": [1, 3]}]}
    layer = {
        "expert_key_prefix": "m.experts",
        "num_experts": 4,
        "num_local_experts": 2,
        "ep_size": 2,
        "ep_rank": 0,
        "expert_placement": placement,
    }
    return Run(path, GROUPS, model={"ds_autoep_layers": [layer]}).write()


def read_all(folder: Path) -> None:
    """Read a checkpoint with its optimizer."""
    found = read(folder)
    if found.withheld:
        raise ReshardError(found.withheld, Exit.SOURCE)


def test_messages(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    said = []
    for name, make in SCENARIOS.items():
        with pytest.raises(ReshardError) as caught:
            read_all(make(tmp_path / name))
        message = str(caught.value).replace(str(tmp_path / name), "CKPT")
        said.append(f"## {name.replace('_', ' ')}\n{message}\n")
    golden("deepspeed/errors.txt", "\n".join(said))


def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    folder = Run(tmp_path, GROUPS).write()
    with pytest.raises(ReshardError) as caught:
        read(folder, step="9")
    assert str(caught.value).replace(str(tmp_path), "CKPT") == (
        "error[unknown-step]: CKPT has no step `9`\n"
        "  = note: steps: `global_step3`\n"
        "  = help: give the name of one of these folders, or the number at its end"
    )


def test_the_folder_of_another_step(tmp_path: Path) -> None:
    folder = Run(tmp_path, GROUPS).write()
    with pytest.raises(ReshardError) as caught:
        read(folder / "global_step3", step="9")
    assert str(caught.value).replace(str(tmp_path), "CKPT") == (
        "error[unknown-step]: CKPT/global_step3 is the folder of `global_step3`, not of step `9`\n"
        "  = help: give the folder above it, or leave `--step` out"
    )


def test_files_written_hours_apart_are_a_warning(tmp_path: Path) -> None:
    folder = Run(tmp_path, GROUPS).write()
    for file in (folder / "global_step3").glob("*optim*"):
        os.utime(file, (1_000_000, 1_000_000))
    os.utime(folder / "global_step3" / "mp_rank_00_model_states.pt", (1_010_000, 1_010_000))
    (warning,) = read(folder).oddities
    assert warning.render() == (
        "warning[files-apart]: mp_rank_00_model_states.pt is 2 hours younger than "
        "zero_pp_rank_0_mp_rank_00_optim_states.pt\n"
        "  = note: model files and optimizer files of one save are written together\n"
        "  = help: make sure that they are of one step; copying can change the times, too"
    )


def test_a_state_without_rule_is_kept_with_a_warning(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    for name in run.shards:
        run.optimizer(name)["base_optimizer_state"]["state"][0]["worker_error"] = Tensor(
            DType.F32, (2, 2), bytes(range(16))
        )
    catalog = read(run.write())
    (warning,) = catalog.oddities
    assert warning.render() == (
        "warning[kept-as-is]: optimizer state `worker_error` of single ranks is kept unchanged\n"
        "  = note: `worker_error` does not have one number for each element: it has shape [2, 2]\n"
        "  = note: only a run of the same size and partition can load them again\n"
        "  = note: first read from zero_pp_rank_0_mp_rank_00_optim_states.pt"
    )
    extra = [tensor for tensor in catalog.tensors if tensor.state == "extra"]
    assert [tensor.name for tensor in extra] == [
        "optimizer.rank.0.0.0.worker_error",
        "optimizer.rank.1.0.0.worker_error",
    ]


def test_equal_constants_are_a_warning(tmp_path: Path) -> None:
    values = {rank: {"n": [1.0] * 4} for rank in (0, 1)}
    catalog = read(Run(tmp_path, SHARDED, tp=2, values=values, model=info()).write())
    (warning,) = catalog.oddities
    assert warning.render() == (
        "warning[undecided-parameter]: 1 parameter is in no list of `universal_checkpoint_info`, "
        "and equal everywhere\n"
        "  = note: `n`\n"
        "  = note: one number fills the shards of all ranks, "
        "so that a copy and a cut look the same\n"
        "  = note: joined along dimension 0, as DeepSpeed does\n"
        "  = help: for a copy, write `[...]` in a layout and give it with `--layout FILE`"
    )
