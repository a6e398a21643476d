"""Master weights beside weights are those of the same step of the same run, or that is told."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import reshard

NAME = "model.layers.0.self_attn.v_proj.weight"
RANK = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
Change = Callable[[np.ndarray], np.ndarray]


def changed(case: Path, to: Path, change: Change) -> Path:
    """A copy of a checkpoint in which the large states of one rank's optimizer are others."""
    shutil.copytree(case / "ckpt", to)
    (file,) = to.glob(f"*/{RANK}")
    members = []
    with zipfile.ZipFile(file) as old:
        for name in old.namelist():
            data = old.read(name)
            if "/data/" in name and len(data) > 4000:
                data = change(np.frombuffer(data, "<f4")).astype("<f4").tobytes()
            members.append((name, data))
    with zipfile.ZipFile(file, "w") as new:
        for name, data in members:
            new.writestr(zipfile.ZipInfo(name), data)
    return to


@pytest.fixture
def mixed(fixture_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """The file of one rank is of another run."""
    return changed(fixture_checkpoint("z1_bf16_dp4_tied"), tmp_path / "mixed", np.negative)


def test_a_file_of_another_run_is_refused(mixed: Path, tmp_path: Path) -> None:
    weights = reshard.open(mixed).read(NAME)
    message = (
        "error[master-mismatch]: the master weights of 5 of 20 tensors do not round to the "
        "weights\n"
        f"  = note: the first is `{NAME}`, at [6, 30]:\n"
        "  = note: the weight is 0.00308228 (0x3b4a) in mp_rank_00_model_states.pt, byte 19,436\n"
        f"  = note: the master weight is -0.003076818 (0xbb49a471) in {RANK}, byte 56,002\n"
        "  = note: in 3 other files they do\n"
        "  = help: make sure that all files are from one step of one run\n"
        "  = help: keep only the weights with `--states weights`, or both with `--on-drift first`"
    )
    for make in (
        lambda: reshard.convert(mixed, tmp_path / "out", "universal"),
        lambda: reshard.convert(mixed, tmp_path / "out", "hf", states="weights", dtype="fp16"),
        lambda: reshard.plan(mixed, "deepspeed:zero=2,dp=2"),
        lambda: reshard.load(mixed, framework="numpy"),
        lambda: reshard.roundtrip(mixed, ["deepspeed-universal"]),
    ):
        with pytest.raises(reshard.ReshardError) as caught:
            make()
        assert str(caught.value) == message
    assert not (tmp_path / "out").exists()
    found = reshard.verify(mixed)
    assert [item.code for item in found.faults] == ["master-mismatch"]
    assert not found.ok
    # What is asked for decides: the weights are whole by themselves.
    assert reshard.verify(mixed, states="weights").ok
    reshard.convert(mixed, tmp_path / "out", "universal", states="weights")
    assert reshard.open(tmp_path / "out").read(NAME).tobytes() == weights.tobytes()


def test_both_are_kept_if_that_is_said(mixed: Path, tmp_path: Path) -> None:
    done = reshard.convert(mixed, tmp_path / "out", "universal", on_drift="first")
    assert [item.code for item in done.report.warnings] == ["master-mismatch"]
    here, there = reshard.open(mixed), reshard.open(tmp_path / "out")
    for state in ("param", "master"):
        assert here.read(NAME, state).tobytes() == there.read(NAME, state).tobytes()


def test_one_element_is_found_by_who_reads_all(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    def change(data: np.ndarray) -> np.ndarray:
        out = data.copy()
        out[101] += np.float32(1)
        return out

    source = changed(fixture_checkpoint("z1_bf16_dp4_tied"), tmp_path / "source", change)
    (warning,) = reshard.verify(source).warnings
    assert warning.render() == (
        "warning[master-mismatch]: the master weights of 1 of 20 tensors do not round to the "
        "weights\n"
        f"  = note: the first is `{NAME}`, at [9, 11]:\n"
        "  = note: the weight is -0.0249023 (0xbccc) in mp_rank_00_model_states.pt, byte 19,638\n"
        f"  = note: the master weight is 0.9751084 (0x3f79a0b4) in {RANK}, byte 56,406\n"
        "  = note: in 3 other files they do\n"
        "  = help: make sure that all files are from one step of one run"
    )
    done = reshard.convert(source, tmp_path / "out", "universal", check=True)
    assert done.report.warnings == (warning,)


def test_weights_of_one_file_of_another_run_are_refused(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Beside the master weights of a rank that has others as well, which are the most."""
    source = tmp_path / "source"
    shutil.copytree(fixture_checkpoint("moe_ep2_dp4_z1_bf16") / "ckpt", source)
    file = min(source.glob("*/layer_*_expert_0_*.pt"))
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, data in members.items():
            negative = np.frombuffer(data, "<u2") ^ 0x8000 if "/data/" in name else None
            new.writestr(zipfile.ZipInfo(name), data if negative is None else negative.tobytes())
    for target in ("universal", "deepspeed:zero=2,dp=2", "dcp"):
        with pytest.raises(reshard.ReshardError, match="master-mismatch") as caught:
            reshard.convert(source, tmp_path / "out", target)
        assert f"in {file.name}, byte " in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert [item.code for item in reshard.verify(source).faults] == ["master-mismatch"]


def test_one_element_among_the_samples_is_a_warning(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    def change(data: np.ndarray) -> np.ndarray:
        return np.concatenate((data[:1] + np.float32(1), data[1:]))

    source = changed(fixture_checkpoint("z1_bf16_dp4_tied"), tmp_path / "source", change)
    done = reshard.convert(source, tmp_path / "out", "universal")
    assert [item.code for item in done.report.warnings] == ["master-mismatch"]
    assert "the master weights of 1 of 20 tensors" in done.report.warnings[0].headline


@pytest.mark.parametrize("target", ["dcp", "deepspeed:zero=3,dp=2"])
def test_which_of_the_two_is_written_is_said(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, target: str
) -> None:
    """These targets have no place for weights beside master weights."""

    def change(data: np.ndarray) -> np.ndarray:
        return np.concatenate((data[:1] + np.float32(1), data[1:]))

    source, out = tmp_path / "source", tmp_path / "out"
    changed(fixture_checkpoint("z1_bf16_dp4_tied"), source, change)
    done = reshard.convert(source, out, target)
    (warning,) = [item for item in done.report.warnings if item.code == "master-mismatch"]
    assert warning.helps == (
        "make sure that all files are from one step of one run",
        "the master weights are written, and the weights that differ from them are not",
        "to write the weights instead, use `--states weights`",
    )
    assert (
        done.next_step == f"reshard verify {source} {out} --states master,exp_avg,exp_avg_sq,step"
    )
    kinds = ["master", "exp_avg", "exp_avg_sq", "step"]
    assert reshard.verify(source, out, states=kinds).ok
    assert "from which it is rounded" not in done.report.to_text()
    kept = reshard.convert(source, tmp_path / "kept", target, states="weights")
    assert "master-mismatch" not in [item.code for item in kept.report.warnings]


@pytest.mark.parametrize("case", ["z1_bf16_dp4_tied", "z0_bf16_dp2", "megatron_do_dp2_buckets"])
def test_masters_of_the_same_step_are_no_news(
    case: str, fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = fixture_checkpoint(case) / "ckpt"
    found = reshard.verify(source)
    assert found.ok
    assert found.warnings == ()
    for dtype in (None, "fp16", "fp32"):
        reshard.convert(source, tmp_path / "out", "universal", dtype=dtype, force=True)
        found = reshard.verify(tmp_path / "out")
        assert found.ok
        assert found.warnings == ()
