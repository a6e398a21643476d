"""The folders of runs whose steps a description of ours is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reshard
from formats.accelerate.test_accelerate_read import Forge, placed
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.formats.recognize import recognize
from reshard.storage.pickle_writer import write_pickle
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


def _of_torch_checkpointing(norm: float = 1) -> np.ndarray:
    """Two ranks of the package torch_checkpointing 0.1.1; the whole of the weight."""
    whole = np.arange(12, dtype=np.float32).reshape(6, 2)
    for rank in (0, 1):
        forge = Forge()
        mesh = forge.mesh([2])
        rows = slice(3 * rank, 3 * rank + 3)
        cut, tenth = (
            forge.dtensor(part[rows].copy(), (6, 2), mesh, placed("Shard", 0))
            for part in (whole, whole / 10)
        )
        plain = forge.tensor(np.full(3, norm if rank else 1, np.float32))
        forge.save(f"model_{rank}.pt", {"layers.0.weight": cut, "norm": plain})
        state = {"exp_avg": tenth, "step": forge.tensor(np.array(3, np.float32))}
        root = {"state": {"layers.0.weight": state}, "param_groups": [{"lr": 0.5}]}
        forge.save(f"optimizer_{rank}.pt", root)
        forge.save(f"train_state_{rank}.pt", {"step": 3})
    Path("ckpt/metadata.pkl").write_bytes(write_pickle({"world_size": 2, "version": "2.0"}))
    return whole


def test_the_files_of_torch_checkpointing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that says which rows it is next to one that every rank has a copy of."""
    monkeypatch.chdir(tmp_path)
    whole = _of_torch_checkpointing()
    found = reshard.open("ckpt")
    assert np.array_equal(found.read("layers.0.weight"), whole)
    assert np.array_equal(found.read("layers.0.weight", "exp_avg"), whole / 10)
    assert np.array_equal(found.read("norm"), np.ones(3))
    assert found.read("layers.0.weight", "step") == 3
    assert (found.training.iteration, found.training.param_groups[0]["lr"]) == (3, 0.5)
    assert found.inspect().left == ()
    assert reshard.verify("ckpt").ok


def test_copies_next_to_parts_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _of_torch_checkpointing(norm=2)
    [fault] = reshard.verify("ckpt").faults
    assert fault.code == "replica-mismatch"
