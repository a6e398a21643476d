"""The folders of runs whose steps a description of ours is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reshard
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.formats.recognize import recognize
from torch_files import Tensor, saved


def _tensor(value: float) -> Tensor:
    return Tensor(DType.F32, (2,), np.full(2, value, "float32").tobytes())


def _model(folder: Path, value: float) -> None:
    folder.mkdir(parents=True)
    (folder / "model_world_size_1_rank_0.pt").write_bytes(saved({"w": _tensor(value)}))
    optimizer = {
        "state": {0: {"exp_avg": _tensor(-value)}},
        "param_groups": [{"lr": 0.5, "params": [0]}],
    }
    (folder / "optim_world_size_1_rank_0.pt").write_bytes(saved(optimizer))


def _is_read(path: Path, value: float, step: str | None = None) -> None:
    found = reshard.open(path, step=step)
    assert found.read("w")[0] == value
    assert found.read("w", "exp_avg")[0] == -value


def test_a_run_of_verl_whose_tracker_has_the_name_of_megatrons(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        _model(tmp_path / f"global_step_{step}" / "actor", step)
    (tmp_path / "global_step_10" / "data.pt").touch()
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("10")
    assert recognize(tmp_path) == "described"
    _is_read(tmp_path, 10)
    _is_read(tmp_path, 9, step="9")
    _is_read(tmp_path, 11, step="global_step_11")
    _is_read(tmp_path / "global_step_9", 9)
    _is_read(tmp_path / "global_step_9" / "actor", 9)
    tracker.unlink()
    _is_read(tmp_path, 11)


def test_a_run_with_two_models(tmp_path: Path) -> None:
    for model in ("actor", "critic"):
        _model(tmp_path / "run" / "global_step_1" / model, 1)
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run")
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[several-models]: .../run/global_step_1 holds several models or optimizers\n"
        "  = note: folders: `actor`, `critic`\n"
        "  = help: give one of these folders"
    )


def test_steps_that_are_not_there(tmp_path: Path) -> None:
    _model(tmp_path / "run" / "global_step_1" / "actor", 1)
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run", step="2")
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[unknown-step]: .../run has no step `2`\n"
        "  = note: steps: `global_step_1`\n"
        "  = help: give the name of one of these folders, or the number at its end"
    )
    with pytest.raises(ReshardError, match="is the folder of `global_step_1`, not of step `2`"):
        reshard.open(tmp_path / "run" / "global_step_1", step="2")
    with pytest.raises(ReshardError, match="a layout describes the files of one step"):
        reshard.open(tmp_path / "run" / "global_step_1" / "actor", step="1")


def test_a_model_above_the_steps_that_led_to_it(tmp_path: Path) -> None:
    _model(tmp_path / "checkpoint-5", 1)
    assert recognize(tmp_path) == "described"
    (tmp_path / "model.safetensors").touch()
    assert recognize(tmp_path) == "hf"
