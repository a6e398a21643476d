"""What a training script saved beside weights and states, on the way to another program."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import reshard
from reshard.dtypes import DType
from torch_files import Tensor, saved


def f32(*values: float) -> Tensor:
    shape = (len(values),) if len(values) > 1 else ()
    return Tensor(DType.F32, shape, struct.pack(f"<{len(values)}f", *values))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A file as a training script saves it, with a learning rate that is a tensor."""
    states = {
        number: {"step": f32(3.0), "exp_avg": f32(*moments), "exp_avg_sq": f32(*moments)}
        for number, moments in enumerate(((0.5, 0.25), (0.125, 1.0, 2.0)))
    }
    group = {"lr": f32(0.003), "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(
        saved(
            {
                "model": {"a.weight": f32(1.0, 2.0), "b.weight": f32(3.0, 4.0, 5.0)},
                "optimizer": {"state": states, "param_groups": [{**group, "params": [0, 1]}]},
                "scheduler": {"base_lrs": [f32(0.003)], "last_epoch": 3},
                "global_step": 3,
                "epoch": 1,
                "best": 0.75,
                "seen": Tensor(DType.F32, (0, 3), b""),
            }
        )
    )
    return folder


def test_keys_that_a_target_of_another_program_has_no_place_for_are_listed(
    run: Path, tmp_path: Path
) -> None:
    done = reshard.convert(run, tmp_path / "out", "deepspeed:zero=2,dp=2")

    left = [item for item in done.report.warnings if item.code == "keys-left"]
    assert [item.render() for item in left] == [
        "warning[keys-left]: 3 keys of the source are not converted\n"
        "  = note: only the program that wrote it reads it again: `epoch in *.pt`, `best in *.pt`, "
        "`seen in *.pt`\n"
        "  = help: keep the source if you need them"
    ]

    dropped = [item.name for item in done.report.fates if item.kind == "dropped"]
    assert dropped == ["*.pt:seen"]


def test_a_distributed_checkpoint_says_by_name_what_it_leaves(run: Path, tmp_path: Path) -> None:
    done = reshard.convert(run, tmp_path / "out", "dcp")

    left = [item for item in done.report.warnings if item.code == "dcp-left"]
    assert [item.render() for item in left] == [
        "warning[dcp-left]: what only the source resumes with is not written\n"
        "  = note: it is `epoch`, `best`, `seen`\n"
        "  = help: keep the source, or convert to `universal`, which keeps it"
    ]


@pytest.mark.parametrize("target", ["dcp", "deepspeed:zero=1,dp=2", "universal"])
def test_a_learning_rate_that_is_a_tensor_stays_one(run: Path, tmp_path: Path, target: str) -> None:
    reshard.convert(run, tmp_path / "out", target)

    training = reshard.inspect(tmp_path / "out").training
    held = {
        "$tensor": {"dtype": "F32", "shape": [], "data": "pptEOw=="},
    }
    assert training.param_groups[0]["lr"] == held
    assert training.state is not None
    assert training.state["lr_scheduler"] == {"base_lrs": [held], "last_epoch": 3}
