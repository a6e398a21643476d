"""torch's own loader takes what reshard wrote, at other sizes and cuts, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from framework import HERE, run_framework
from safetensors import safe_open
from safetensors.numpy import save_file

import reshard

pytestmark = [pytest.mark.interop, pytest.mark.covers("torch", "write")]

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}

Find = Callable[[str], Path]
Load = Callable[..., dict[str, Any]]


@pytest.fixture
def load(interop_python: Path, tmp_path: Path) -> Load:
    """A function that lets torch load a folder into a cut model: what it found."""

    def call(folder: Path, case: Path, **job: Any) -> dict[str, Any]:
        told = {"world": 2, "shard": "fsdp2", "names": "hf", "dtype": "float32", "form": "dcp"}
        told |= {"flat": False, "folder": str(folder), "truth": str(case / "truth.safetensors")}
        (tmp_path / "job.json").write_text(json.dumps(told | job), encoding="utf-8")
        report = tmp_path / "loaded.json"
        report.unlink(missing_ok=True)
        script = [str(interop_python), str(HERE / "dcp_load.py")]
        run_framework([*script, str(tmp_path / "job.json"), str(report)], tmp_path)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found

    return call


def _equal(found: dict[str, Any], count: int) -> None:
    assert (found["equal"], found["different"]) == (count, [])


@pytest.mark.covers("torch", "read", "resume")
def test_fsdp2_at_another_size(fixture_checkpoint: Find, load: Load, tmp_path: Path) -> None:
    case = fixture_checkpoint("dcp_dp2")
    reshard.convert(case / "ckpt", tmp_path / "out", "dcp:dp=2")
    found = load(tmp_path / "out", case, world=3, later=2)
    _equal(found, 84)
    assert found["later"] == load(case / "ckpt", case, later=2)["later"]
    assert [group["weight_decay"] for group in found["groups"]] == [0.1, 0.0]
    assert all(group["lr"] == 0.01 and group["betas"] == [0.9, 0.95] for group in found["groups"])


def test_a_grid_of_four_ranks_from_a_universal_checkpoint(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    case = fixture_checkpoint("dcp_tp2_dp2")
    reshard.convert(case / "ckpt", tmp_path / "universal", "universal")
    reshard.convert(tmp_path / "universal", tmp_path / "out", "dcp:dp=3")
    _equal(load(tmp_path / "out", case, world=4, shard="tp+fsdp2"), 84)


def test_two_tensor_parallel_ranks_of_what_was_cut_for_four(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    case = fixture_checkpoint("dcp_dp2")
    to = "dcp:dp=2,tp=2,flatten=1"
    reshard.convert(case / "ckpt", tmp_path / "out", to, names="hf", settings=HEADS)
    _equal(load(tmp_path / "out", case, shard="tp+fsdp2", flat=True), 84)


def test_shapes_that_ranks_cannot_share(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    case = fixture_checkpoint("dcp_dp4_odd")
    reshard.convert(case / "ckpt", tmp_path / "out", "dcp:dp=2")
    _equal(load(tmp_path / "out", case, world=3, names="odd"), 25)


def test_tied_weights(fixture_checkpoint: Find, load: Load, tmp_path: Path) -> None:
    case = fixture_checkpoint("dcp_dp2_tied")
    reshard.convert(case / "ckpt", tmp_path / "out", "dcp:dp=4")
    _equal(load(tmp_path / "out", case, tied=True), 80)


def test_torchtitan_resumes(fixture_checkpoint: Find, load: Load, tmp_path: Path) -> None:
    case = fixture_checkpoint("dcp_dp2")
    reshard.convert(case / "ckpt", tmp_path / "out", "torchtitan:dp=3", settings=HEADS)
    back = tmp_path / "back"
    reshard.convert(tmp_path / "out", back, "universal", names="hf", settings=HEADS)
    truth = _named_truth(tmp_path / "out", tmp_path / "titan.safetensors")
    found = load(
        tmp_path / "out" / "step-2",
        tmp_path,
        truth=str(tmp_path / "titan.safetensors"),
        shapes=_shapes(truth),
        form="titan",
        flat=True,
    )
    _equal(found, 84)
    assert (found["step"], found["last_epoch"], found["ntokens_seen"]) == (2, 2, 0)
    assert reshard.verify(case / "ckpt", back).ok


@pytest.mark.covers("accelerate", "read", "write", "resume")
def test_accelerate_loads_its_two_folders(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    case = fixture_checkpoint("dcp_accelerate_dp2")
    reshard.convert(case / "ckpt", tmp_path / "out", "accelerate:dp=3")
    found = load(tmp_path / "out", case, world=3, form="accelerate", later=2)
    _equal(found, 84)
    assert found["later"] == load(case / "ckpt", case, form="accelerate", later=2)["later"]


def test_tied_master_weights_of_a_deepspeed_run_in_bf16(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    case = fixture_checkpoint("z1_bf16_dp4_tied")
    reshard.convert(case / "ckpt", tmp_path / "out", "dcp:dp=3")
    truth, shapes = _deepspeed_truth(case, tmp_path / "truth.safetensors")
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    found = load(tmp_path / "out", tmp_path, shapes=shapes, tied=True)
    _equal(found, len(truth))


def test_a_reader_of_a_zero_3_checkpoint(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    case = fixture_checkpoint("z3_fp32_dp2_untied")
    truth, shapes = _deepspeed_truth(case, tmp_path / "truth.safetensors")
    found = load(case / "ckpt", tmp_path, shapes=shapes, reader={})
    _equal(found, len(truth))
    assert [group["weight_decay"] for group in found["groups"]] == [0.1, 0.0]


def test_a_reader_of_a_megatron_checkpoint_over_tensor_and_pipeline_ranks(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    source = fixture_checkpoint("megatron_untied_tp2_pp2") / "ckpt"
    reshard.convert(source, tmp_path / "hf", "universal", names="hf")
    truth = _named_truth(tmp_path / "hf", tmp_path / "truth.safetensors")
    told = {"shapes": _shapes(truth), "reader": {"names": "hf"}, "groups": False}
    found = load(source, tmp_path, **told)
    _equal(found, len(truth))


def test_a_reader_without_a_process_group(
    fixture_checkpoint: Find, load: Load, tmp_path: Path
) -> None:
    case = fixture_checkpoint("dcp_tp2_dp2")
    reshard.convert(case / "ckpt", tmp_path / "universal", "universal")
    _equal(load(tmp_path / "universal", case, world=0, reader={}), 84)


def test_a_reader_into_a_grid_of_ranks(fixture_checkpoint: Find, load: Load) -> None:
    case = fixture_checkpoint("dcp_dp2_flat")
    found = load(case / "ckpt", case, world=4, shard="tp+fsdp2", flat=True, reader={})
    _equal(found, 84)


def _deepspeed_truth(
    case: Path, path: Path
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, list[int]]]:
    """The truth of a case of DeepSpeed, under the keys of these cases; and the shapes."""
    truth = {}
    with safe_open(case / "truth.safetensors", "numpy") as held:
        for key in held.keys():  # noqa: SIM118 - no dict
            name, _, state = key.rpartition("/")
            truth[f"{'param' if state == 'fp32' else state}/{name}"] = held.get_tensor(key)
            truth[f"step/{name}"] = np.array(3, "float32")
    save_file(truth, path)
    return truth, _shapes(truth)


def _shapes(truth: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[int]]:
    """The shapes of the parameters."""
    found = {}
    for key, array in truth.items():
        state, _, name = key.partition("/")
        if state == "param":
            found[name] = list(array.shape)
    return found


def _named_truth(folder: Path, path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Everything that a checkpoint holds, as the truth of a case is written."""
    checkpoint = reshard.open(folder)
    truth = {}
    for name, info in checkpoint.tensors.items():
        for state in info.dtypes:
            if state in ("param", "exp_avg", "exp_avg_sq", "step"):
                array = checkpoint.read(name, state)
                truth[f"{state}/{name}"] = array.astype("float32") if state == "step" else array
    save_file(truth, path)
    return truth
