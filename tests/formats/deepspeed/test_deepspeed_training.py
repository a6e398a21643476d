"""Nothing besides tensors is dropped: client state, differences between ranks, odd entries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deepspeed_forge import Run, Tensor
from deepspeed_oracle import arrange, wholes

import reshard
from reshard import ReshardError
from reshard.dtypes import DType
from reshard.formats.deepspeed.read import read
from reshard.run.run import Run as Training
from reshard.storage.inert import Record

GROUPS = [{"w": (3, 4)}, {"b": (5,)}]


def framework(training: Training) -> dict[str, object]:
    assert training.framework is not None
    json.dumps(training.framework, allow_nan=False)
    return dict(training.framework)


def test_tensors_of_the_client_state_are_kept_by_name(tmp_path: Path) -> None:
    state = {"cpu": Tensor(DType.U8, (4,), bytes([1, 2, 3, 4])), "seed": 7}
    catalog = read(Run(tmp_path, GROUPS, model={"rng_state": state, "args": {"lr": 0.1}}).write())
    assert framework(catalog.training)["client_state"] == {
        "rng_state": {"cpu": {"$tensor": "client_state.rng_state"}, "seed": 7},
        "args": {"lr": 0.1},
    }
    found = wholes(arrange(catalog))
    assert found["client_state.rng_state", "extra"].tolist() == [1, 2, 3, 4]


def test_what_ranks_say_otherwise_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS, stage=3)
    for rank in (0, 1):
        root = run.models[f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"]
        root["rng"] = Tensor(DType.U8, (2,), bytes([rank, 9]))
        root["same"] = Tensor(DType.U8, (2,), bytes([5, 9]))
    run.optimizer("zero_pp_rank_1_mp_rank_00_optim_states.pt")["overflow"] = True
    catalog = read(run.write())
    assert framework(catalog.training)["per_rank"] == {
        "zero_pp_rank_1_mp_rank_00_model_states.pt": {"rng": {"$tensor": "rank.1.0.rng"}},
        "zero_pp_rank_1_mp_rank_00_optim_states.pt": {"overflow": True},
    }
    found = wholes(arrange(catalog))
    assert found["client_state.rng", "extra"].tolist() == [0, 9]
    assert found["rank.1.0.rng", "extra"].tolist() == [1, 9]


def test_schedules_and_scalers_are_kept(tmp_path: Path) -> None:
    scaler = Record("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler", (), "newobj")
    scaler.state.append({"cur_scale": 65536.0, "dynamic": True})
    run = Run(tmp_path, GROUPS, model={"lr_scheduler": {"last_batch_iteration": 2}})
    for name in run.shards:
        run.optimizer(name)["loss_scaler"] = scaler
        run.optimizer(name)["dynamic_loss_scale"] = True
        run.optimizer(name)["something_new"] = [1, 2]
    training = read(run.write()).training
    assert training.state == {
        "lr_scheduler": {"last_batch_iteration": 2},
        "loss_scaler": {
            "$record": {
                "class": ["deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"],
                "how": "newobj",
                "args": [],
                "state": [{"cur_scale": 65536.0, "dynamic": True}],
            }
        },
        "dynamic_loss_scale": True,
        "overflow": False,
        "clip_grad": 1.0,
    }
    assert framework(training)["optimizer_other"] == {"something_new": [1, 2]}


def test_param_groups_have_their_names(tmp_path: Path) -> None:
    training = read(Run(tmp_path, GROUPS).write()).training
    assert training.param_groups == (
        {"lr": 0.01, "params": ["w"]},
        {"lr": 0.01, "params": ["b"]},
    )
    assert training.iteration == 3


def test_sub_groups_of_stage_3_belong_to_param_groups(tmp_path: Path) -> None:
    run = Run(tmp_path, [*GROUPS, {"v": (2,)}], stage=3)
    for name in run.shards:
        base = run.optimizer(name)["optimizer_state_dict"]
        base["param_groups"] = [{"lr": 1.0, "params": [0, 1]}, {"lr": 2.0, "params": [2]}]
    training = read(run.write()).training
    assert training.param_groups == (
        {"lr": 1.0, "params": ["w", "b"]},
        {"lr": 2.0, "params": ["v"]},
    )


def test_what_a_module_holds_besides_tensors_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    run.models["mp_rank_00_model_states.pt"]["module"]["w._extra_state"] = None
    assert framework(read(run.write()).training)["module_other"] == {
        "mp_rank_00_model_states.pt": {"w._extra_state": None}
    }


def test_a_step_may_be_a_number_or_a_group_s(tmp_path: Path) -> None:
    run = Run(tmp_path / "a", GROUPS, step=7)
    found = wholes(arrange(read(run.write())))
    assert (found["w", "step"].dtype.name, found["w", "step"].tolist()) == ("int64", 7)
    run = Run(tmp_path / "b", GROUPS)
    for name in run.shards:
        base = run.optimizer(name)["base_optimizer_state"]
        for state, group in zip(base["state"].values(), base["param_groups"], strict=True):
            del state["step"]
            group["step"] = 8
    found = wholes(arrange(read(run.write())))
    assert found["b", "step"].tolist() == 8


def test_an_optimizer_without_steps_has_master_weights_alone(tmp_path: Path) -> None:
    catalog = read(Run(tmp_path, GROUPS, trained=False).write())
    assert {tensor.state for tensor in catalog.tensors} == {"param", "master"}
    assert catalog.frozen == ()


def test_any_state_by_element_is_read_under_its_name(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    for name in run.shards:
        for state in run.optimizer(name)["base_optimizer_state"]["state"].values():
            state["momentum_buffer"] = state.pop("exp_avg")
            del state["exp_avg_sq"]
    found = wholes(arrange(read(run.write())))
    assert {state for _, state in found} == {"param", "master", "momentum_buffer", "step"}
    assert found["w", "momentum_buffer"].tolist() == (found["w", "master"] / 4).tolist()


def test_weights_that_share_memory_are_aliases(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    root = run.models["mp_rank_00_model_states.pt"]
    root["shared_params"] = {"head": "tied", "tied": "w"}
    own = root["module"]["w"].data
    root["module"].update(head=Tensor(DType.F32, (3, 4), own), tied=Tensor(DType.F32, (3, 4), own))
    catalog = read(run.write())
    assert catalog.aliases == {"head": "w", "tied": "w"}
    assert {tensor.name for tensor in catalog.tensors} == {"w", "b"}


def test_tied_weights_that_are_stored_twice_must_agree(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    root = run.models["mp_rank_00_model_states.pt"]
    root["shared_params"] = {"head": "w"}
    own = bytearray(root["module"]["w"].data)
    own[4 * 5] ^= 1
    root["module"]["head"] = Tensor(DType.F32, (3, 4), bytes(own))
    with pytest.raises(ReshardError) as raised:
        reshard.open(run.write())
    assert str(raised.value) == (
        "error[replica-mismatch]: copies of `w` (param) differ\n"
        "  = note: `head` is another name of it, and mp_rank_00_model_states.pt stores both\n"
        "  = note: the first difference is at element 5\n"
        "  = help: the run that wrote the file would load either into both: "
        "find out which one is right"
    )


def test_tied_weights_of_two_shapes_are_no_tied_weights(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    root = run.models["mp_rank_00_model_states.pt"]
    root["shared_params"] = {"head": "w"}
    root["module"]["head"] = Tensor(DType.F32, (12,), root["module"]["w"].data)
    with pytest.raises(ReshardError, match=r"`w` is F32 \[3, 4\]\n.*`head` is F32 \[12\]"):
        reshard.open(run.write())


def test_a_step_is_chosen(tmp_path: Path) -> None:
    Run(tmp_path, GROUPS, steps=3).write()
    folder = Run(tmp_path, GROUPS, steps=20).write()
    assert read(folder).training.iteration == 20
    assert read(folder, step="3").training.iteration == 3
    assert read(folder, step="global_step3").training.iteration == 3
    assert read(folder / "global_step3").training.iteration == 3
