"""States of every optimizer: cut anew, kept as found, or named in an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from deepspeed_forge import Run, Tensor, floats
from deepspeed_oracle import arrange, wholes
from deepspeed_targets import held, tree

from reshard import api
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.formats.deepspeed.read import read
from reshard.storage.inert import Record

GROUPS = [{"w": (3, 4), "v": (2, 3)}, {"b": (5,)}]


def states_of(run: Run, name: str) -> dict[int, dict[str, object]]:
    """The states of a rank, by group."""
    found: dict[int, dict[str, object]] = run.optimizer(name)["base_optimizer_state"]["state"]
    return found


def said(error: pytest.ExceptionInfo[ReshardError]) -> str:
    return str(error.value)


# One number per parameter.


def nadam(path: Path) -> Path:
    run = Run(path, GROUPS)
    for name in run.shards:
        for index, own in states_of(run, name).items():
            own["mu_product"] = floats([0.25 + index], ())
    return run.write()


@pytest.mark.parametrize("to", ["deepspeed:zero=3,dp=3", "deepspeed:zero=2,dp=1"])
def test_a_number_per_parameter_has_a_place(tmp_path: Path, to: str) -> None:
    source = nadam(tmp_path / "source")
    api.convert(source, tmp_path / "out", to)
    found = held(tmp_path / "out")
    assert found["w", "mu_product"].tolist() == 0.25
    assert found["b", "mu_product"].tolist() == 1.25
    states = tree(next(tmp_path.glob("out/*/zero_pp_rank_0_mp_rank_00_optim_states.pt")))[
        "optimizer_state_dict"
    ]
    base = states.get("base_optimizer_state") or states["optimizer_state_dict"]
    assert base["state"][0]["mu_product"].shape == ()
    assert api.roundtrip(source, [to]).ok


def test_deepspeeds_universal_form_has_no_place_for_it(tmp_path: Path) -> None:
    source = nadam(tmp_path / "source")
    with pytest.raises(ReshardError) as caught:
        api.convert(source, tmp_path / "out", "deepspeed-universal")
    assert said(caught) == (
        "error[deepspeed-universal-state]: DeepSpeed does not load optimizer state `mu_product` "
        "from its universal form\n"
        "  = note: one number per parameter, of which it has none\n"
        "  = help: convert to `deepspeed:zero=...,dp=...` for the run that goes on\n"
        "  = help: or leave `mu_product` out: `--states param,master,exp_avg,exp_avg_sq,step`"
    )
    assert not (tmp_path / "out").exists()
    wanted = "param,master,exp_avg,exp_avg_sq,step"
    api.convert(source, tmp_path / "out", "deepspeed-universal", states=wanted)


def test_parameters_of_one_group_have_one_number(tmp_path: Path) -> None:
    source = nadam(tmp_path / "source")
    api.convert(source, tmp_path / "u", "universal")
    manifest = tmp_path / "u" / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    assert '"mu_product"' in text


# Of whole parameters.


def muon(path: Path, *, dp: int = 2) -> Path:
    """`w` and `v` have 18 elements in partitions of 10: rank 0 has some of `w`, rank 1 of both."""
    run = Run(path, GROUPS, dp=dp)
    w = [1.5 * index for index in range(12)]
    v = [-2.5 * index for index in range(6)]
    for name, values in zip(run.shards, (w, [*w, *v]), strict=True):
        states_of(run, name)[0] = {"momentum_buffer": floats(values)}
        group = run.optimizer(name)["base_optimizer_state"]["param_groups"][0]
        group.update(use_muon=True, momentum=0.9)
    return run.write()


def test_momentum_of_whole_parameters_is_cut_anew(tmp_path: Path) -> None:
    source = muon(tmp_path / "source")
    found = held(source)
    assert found["w", "momentum_buffer"].ravel().tolist() == [1.5 * i for i in range(12)]
    assert found["v", "momentum_buffer"].ravel().tolist() == [-2.5 * i for i in range(6)]
    for to in ("deepspeed:zero=1,dp=3", "deepspeed:zero=2,dp=1", "deepspeed:zero=3,dp=2"):
        assert api.roundtrip(source, [to]).ok, to
    api.convert(source, tmp_path / "out", "deepspeed:zero=2,dp=3")  # partitions of 6 elements
    kept = []
    for path in sorted(tmp_path.glob("out/*/*_optim_states.pt")):
        base = tree(path)["optimizer_state_dict"]["base_optimizer_state"]
        kept.append(base["state"][0]["momentum_buffer"].shape)
    assert kept == [(12,), (12,), (6,)]
    api.convert(source, tmp_path / "three", "deepspeed:zero=3,dp=2")
    base = tree(next(tmp_path.glob("three/*/*rank_0_*_optim_states.pt")))["optimizer_state_dict"]
    assert base["optimizer_state_dict"]["state"][0]["momentum_buffer"].shape == (9,)


def test_copies_of_such_a_momentum_must_agree(tmp_path: Path) -> None:
    run = Run(tmp_path / "source", GROUPS)
    for index, name in enumerate(run.shards):
        values = [*range(12)] if not index else [0.0] * 18
        states_of(run, name)[0] = {"momentum_buffer": floats(values)}
    with pytest.raises(ReshardError) as caught:
        api.convert(run.write(), tmp_path / "out", "universal")
    assert "error[replica-mismatch]" in said(caught)


def test_the_universal_form_cannot_give_it_to_muon(tmp_path: Path) -> None:
    with pytest.raises(ReshardError) as caught:
        api.convert(muon(tmp_path / "source"), tmp_path / "out", "deepspeed-universal")
    assert said(caught) == (
        "error[deepspeed-universal-state]: DeepSpeed does not load optimizer state "
        "`momentum_buffer` from its universal form\n"
        "  = note: Muon keeps it of whole parameters, and the loader gives each rank its elements "
        "alone\n"
        "  = help: convert to `deepspeed:zero=...,dp=...` for the run that goes on\n"
        "  = help: or leave `momentum_buffer` out: "
        "`--states param,master,exp_avg,exp_avg_sq,step`"
    )


# Of a partition alone.


def sliced(path: Path) -> Path:
    """Every eleventh element, and a number that is another one on each rank."""
    run = Run(path, GROUPS, stage=2)
    for index, name in enumerate(run.shards):
        states_of(run, name)[0]["p0"] = floats([7.0 + index])
        states_of(run, name)[1]["RMS"] = floats([0.5 + index], ())
    return run.write()


def test_states_of_a_partition_are_kept_and_said(tmp_path: Path) -> None:
    catalog = read(sliced(tmp_path / "source"))
    (warning,) = catalog.oddities
    assert warning.render() == (
        "warning[kept-as-is]: optimizer states `p0`, `RMS` of single ranks are kept unchanged\n"
        "  = note: `p0` does not have one number for each element: it has shape [1]\n"
        "  = note: `RMS` is one number, and ranks have different ones: 0.5, 1.5\n"
        "  = note: only a run of the same size and partition can load them again\n"
        "  = note: first read from zero_pp_rank_0_mp_rank_00_optim_states.pt"
    )
    found = wholes(arrange(catalog))
    assert found["optimizer.rank.1.0.0.p0", "extra"].tolist() == [8.0]


def test_a_run_of_the_same_partition_gets_them_back(tmp_path: Path) -> None:
    source = sliced(tmp_path / "source")
    api.convert(source, tmp_path / "u", "universal")
    api.convert(tmp_path / "u", tmp_path / "out", "deepspeed:zero=1,dp=2")
    for index, name in enumerate(("0", "1")):
        path = next(tmp_path.glob(f"out/*/zero_pp_rank_{name}_mp_rank_00_optim_states.pt"))
        base = tree(path)["optimizer_state_dict"]["base_optimizer_state"]
        assert base["state"][0]["p0"].shape == (1,)
        assert base["state"][1]["RMS"].shape == ()
        extra = wholes(arrange(read(tmp_path / "out")))
        assert extra[f"optimizer.rank.{index}.0.1.RMS", "extra"].tolist() == 0.5 + index
    assert api.roundtrip(source, ["deepspeed:zero=2,dp=2"]).ok


@pytest.mark.parametrize("to", ["deepspeed:zero=1,dp=3", "deepspeed:zero=3,dp=2"])
def test_another_partition_does_not(tmp_path: Path, to: str) -> None:
    source = sliced(tmp_path / "source")
    with pytest.raises(ReshardError) as caught:
        api.convert(source, tmp_path / "out", to)
    assert said(caught) == (
        "error[deepspeed-kept-state]: optimizer states `p0`, `RMS` cannot be carried to this "
        "target\n"
        "  = note: a rank keeps there values of its partition in the source, not of parameters\n"
        "  = note: first found in zero_pp_rank_0_mp_rank_00_optim_states.pt\n"
        "  = help: convert to `deepspeed:zero=2,dp=2`, where every rank finds its own again\n"
        "  = help: leave `p0`, `RMS` out: `--states param,master,exp_avg,exp_avg_sq,step`"
    )
    assert not (tmp_path / "out").exists()
    wanted = "param,master,exp_avg,exp_avg_sq,step"
    api.convert(source, tmp_path / "out", to, states=wanted)
    assert ("w", "exp_avg") in held(tmp_path / "out")


def test_weights_alone_have_none_of_them(tmp_path: Path) -> None:
    api.convert(sliced(tmp_path / "source"), tmp_path / "u", "universal", states="weights")
    assert list((tmp_path / "u").glob("extra/*.safetensors")) == []


# Factored states, by parameter.


def test_factored_states_without_zero_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, [{"w": (3, 4), "b": (5,)}], stage=0)
    run.shards.clear()
    (root,) = run.models.values()
    root["param_shapes"] = None
    root["module"] = {"w": floats([1.0] * 12, (3, 4)), "b": floats([2.0] * 5)}
    root["optimizer"] = {
        "state": {
            0: {"step": 3, "row": floats([1.0, 2.0, 3.0]), "column": floats([1.0] * 4)},
            1: {"step": 3, "exp_avg_sq": floats([4.0] * 5)},
        },
        "param_groups": [{"lr": 0.1, "params": [0, 1]}],
    }
    catalog = read(run.write())
    found = wholes(arrange(catalog))
    assert found["b", "exp_avg_sq"].tolist() == [4.0] * 5
    assert found["w", "step"].tolist() == 3
    assert found["optimizer.0.row", "extra"].tolist() == [1.0, 2.0, 3.0]
    assert [item.code for item in catalog.oddities] == ["kept-as-is"]


# What older versions, and other frameworks, make of a partition.


def test_before_019_the_last_rank_states_all_padding(tmp_path: Path) -> None:
    """One element over four ranks, in a buffer of eight: three ranks have nothing."""
    run = Run(tmp_path, [{"s": (1,)}], dp=4)
    for index, name in enumerate(run.shards):
        optimizer = run.optimizer(name)
        optimizer["group_paddings"] = [7 if index == 3 else 0]
        own = [[5.0, 0.0], [0.0, 0.0], [0.0, 0.0], []][index]
        optimizer["single_partition_of_fp32_groups"] = [floats(own)]
    found = held(run.write())
    assert found["s", "master"].tolist() == [5.0]
    assert found["s", "exp_avg"].tolist() == [250.0]


def test_sequence_ranks_are_no_tensor_parallel_ranks(tmp_path: Path) -> None:
    plain = held(Run(tmp_path / "a", GROUPS, dp=4).write())
    run = Run(tmp_path / "b", GROUPS, dp=4)
    names = [f"zero_pp_rank_{i}_mp_rank_{i % 2:02d}_optim_states.pt" for i in range(4)]
    run.shards = dict(zip(names, run.shards.values(), strict=True))
    folder = run.write()
    assert read(folder).mesh == {"pp": 1, "tp": 1, "dp": 4}
    found = held(folder)
    assert {key: value.tolist() for key, value in found.items()} == {
        key: value.tolist() for key, value in plain.items()
    }


def address(numel: int, start: int) -> Record:
    record = Record("deepspeed.utils.tensor_fragment", "fragment_address", (), "newobj")
    record.state.append({"numel": numel, "start": start})
    return record


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_is_known_without_a_configuration(tmp_path: Path, turned: bool) -> None:
    """The buffer has a, c, b; slices are noted of a, b, c where that was made round robin."""
    run = Run(tmp_path, [{"a": (4,), "c": (4,), "b": (4,)}], model={"ds_config": "ds.json"})
    second = ("b", "c") if turned else ("c", "b")
    first, last = run.shards
    run.optimizer(first)["param_slice_mappings"] = [{"a": address(4, 0), second[0]: address(2, 4)}]
    run.optimizer(last)["param_slice_mappings"] = [
        {second[0]: address(2, 0), second[1]: address(4, 2)}
    ]
    catalog = read(run.write())
    order = ["a", "b", "c"] if turned else ["a", "c", "b"]
    assert catalog.training.param_groups[0]["params"] == order
    assert catalog.training.framework is not None
    assert catalog.training.framework["ds_config"] == "ds.json"
    assert wholes(arrange(catalog))["c", "master"].tolist() == [2000.0, 2001.0, 2002.0, 2003.0]


def test_slices_that_fit_no_order_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, [{"a": (4,), "c": (4,), "b": (4,)}], model={"ds_config": "ds.json"})
    run.optimizer(next(iter(run.shards)))["param_slice_mappings"] = [{"a": address(4, 2)}]
    with pytest.raises(ReshardError) as caught:
        read(run.write())
    assert "error[partition-mismatch]: `a` does not lie where its writer says" in said(caught)


def test_a_learning_rate_may_be_a_tensor(tmp_path: Path) -> None:
    run = Run(tmp_path / "source", GROUPS)
    for name in run.shards:
        for group in run.optimizer(name)["base_optimizer_state"]["param_groups"]:
            group["lr"] = floats([0.5], ())
    source = run.write()
    assert "lr=0.5" in api.inspect(source).to_text()
    api.convert(source, tmp_path / "d", "dcp:dp=2")
    api.convert(source, tmp_path / "z", "deepspeed:zero=3,dp=3")
    path = next(tmp_path.glob("z/*/zero_pp_rank_0_mp_rank_00_optim_states.pt"))
    base = tree(path)["optimizer_state_dict"]["optimizer_state_dict"]
    assert base["param_groups"][0]["lr"].dtype is DType.F32
    assert read(tmp_path / "z").training.param_groups == read(source).training.param_groups


def test_a_tensor_of_another_rank_is_no_bug(tmp_path: Path) -> None:
    """What only ranks that the target lacks had is named as left."""
    run = Run(tmp_path / "source", GROUPS, stage=3)
    for rank, root in enumerate(run.models.values()):
        root["rng"] = Tensor(DType.U8, (2,), bytes([rank, 9]))
    source = run.write()
    done = api.convert(source, tmp_path / "out", "deepspeed:zero=1,dp=3")
    assert [item.code for item in done.report.warnings][:1] == ["deepspeed-rank-state"]
    lost = [fate for fate in done.report.fates if fate.name == "rank.1.0.rng"]
    assert len(lost) == 1
    api.convert(source, tmp_path / "same", "deepspeed:zero=3,dp=2")
    extra = wholes(arrange(read(tmp_path / "same")))
    assert extra["rank.1.0.rng", "extra"].tolist() == [1, 9]
