"""What is warned of while reading, in whole messages; names and groups that are not plain."""

from __future__ import annotations

from collections.abc import Callable
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

PAGES = Path(__file__).resolve().parents[3] / "docs" / "errors"
GROUPS = [{"w": (3, 4)}, {"b": (5,)}]

Scenario = Callable[[Path], Run]
SCENARIOS: dict[str, Scenario] = {}


def scenario(make: Scenario) -> Scenario:
    """Register a function that makes a checkpoint with a warning of its name."""
    SCENARIOS[make.__name__.replace("_", "-")] = make
    return make


@scenario
def unstored_parameter(path: Path) -> Run:
    run = Run(path, GROUPS, stage=3)
    for root in run.models.values():
        root["module"].update({"frozen.weight": floats([]), "frozen.bias": floats([])})
    return run


@scenario
def no_optimizer_states(path: Path) -> Run:
    run = Run(path, GROUPS, stage=0)
    run.shards.clear()
    return run


@scenario
def unnamed_states(path: Path) -> Run:
    run = Run(path, [{"a": (2,), "b": (2,), "c": (2,)}], stage=0)
    run.shards.clear()
    (root,) = run.models.values()
    root["param_shapes"] = None
    root["optimizer"] = {
        "state": {index: {"exp_avg": floats([1.0, 2.0])} for index in range(3)},
        "param_groups": [{"params": [0, 1]}, {"params": [2]}],
    }
    return run


@scenario
def ranks_differ(path: Path) -> Run:
    run = Run(path, GROUPS, stage=3)
    for rank, root in enumerate(run.models.values()):
        args = Record("argparse", "Namespace", (), "newobj")
        args.state.append({"seq_length": 64 * (rank + 1), "rank": rank})
        root["args"] = args
        root["random_rng_state"] = [3, [rank]]
    return run


@pytest.mark.parametrize("code", SCENARIOS)
def test_the_page_shows_the_whole_warning(code: str, tmp_path: Path) -> None:
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    example = page.partition("## Example\n\n```text\n")[2].partition("\n```")[0]
    (warning,) = read(SCENARIOS[code](tmp_path).write()).oddities
    assert (warning.code, warning.render()) == (code, example)


def test_states_without_names_leave_the_weights(tmp_path: Path) -> None:
    source = unnamed_states(tmp_path / "source").write()
    text = api.inspect(source).to_text()
    assert "state 0 of group 0 is of `a` or `b`" in text
    assert "frozen" not in text
    with pytest.raises(ReshardError) as caught:
        api.convert(source, tmp_path / "out", "universal")
    assert "error[ambiguous-optimizer-ids]" in str(caught.value)
    api.convert(source, tmp_path / "out", "universal", states="weights")


def test_a_parameter_that_is_not_partitioned_is_read_from_the_module(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS, stage=3)
    for root in run.models.values():
        root["module"]["outside"] = floats([1.0, 2.0])
    catalog = read(run.write())
    assert catalog.oddities == ()
    assert catalog.frozen == ("outside",)
    assert wholes(arrange(catalog))["outside", "param"].tolist() == [1.0, 2.0]


def test_empty_tensors_of_older_versions_are_not_read(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS, stage=3)
    for root in run.models.values():
        root["module"] = {name: floats([0.0]) for name in (*root["module"], "lost")}
    catalog = read(run.write())
    assert [item.code for item in catalog.oddities] == ["unstored-parameter"]
    assert "lost" not in {tensor.name for tensor in catalog.tensors}


def test_buffers_of_other_ranks_are_compared(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS, stage=3)
    for rank, root in enumerate(run.models.values()):
        root["module"]["mean"] = floats([float(rank)])
        root["buffer_names"] = ["mean"]
    (warning,) = read(run.write()).oddities
    assert warning.render() == (
        "warning[ranks-differ]: 1 buffer differs between data-parallel ranks; that of rank 0 is "
        "read\n"
        "  = note: `mean` in zero_pp_rank_1_mp_rank_00_model_states.pt\n"
        "  = help: check that the files are of one run, where the ranks should be alike"
    )


# Settings that all ranks have.


@pytest.mark.parametrize(
    ("key", "note"),
    [
        ("lr", "`param_groups[0].lr` is 0.01 in A, and 2.5 in B"),
        ("clip_grad", "`clip_grad` is 1.0 in A, and 2.5 in B"),
    ],
)
def test_ranks_with_other_settings_are_refused(tmp_path: Path, key: str, note: str) -> None:
    run = Run(tmp_path, GROUPS)
    first, last = run.shards
    optimizer = run.optimizer(last)
    group = optimizer["base_optimizer_state"]["param_groups"][0]
    (optimizer if key in optimizer else group)[key] = 2.5
    with pytest.raises(ReshardError) as caught:
        read(run.write())
    assert str(caught.value).replace(first, "A").replace(last, "B") == (
        "error[mixed-runs]: the settings of the optimizer differ between ranks\n"
        f"  = note: {note}\n"
        "  = help: the files may be from different runs or steps; use the files of one run and "
        "one step"
    )


def test_ranks_with_another_schedule_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS, stage=3)
    for rank, root in enumerate(run.models.values()):
        root["lr_scheduler"] = {"last_batch_iteration": rank}
    with pytest.raises(ReshardError) as caught:
        read(run.write())
    assert "the learning rate schedules differ between ranks" in str(caught.value)


def test_what_an_optimizer_adapts_on_each_rank_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    for index, name in enumerate(run.shards):
        for group in run.optimizer(name)["base_optimizer_state"]["param_groups"]:
            group["d_hat"] = 0.5 + index
    (warning,) = read(run.write()).oddities
    assert "`param_groups.d_hat` in zero_pp_rank_1_mp_rank_00_optim_states.pt" in warning.render()
    assert api.roundtrip(run.folder.parent, ["deepspeed:zero=2,dp=2"]).ok


# Modules within modules.


def nested(path: Path, stage: int = 1) -> Run:
    run = Run(path, [{"lm.encoder.layers.0.w": (3, 4)}, {"lm.b": (5,)}], stage=stage)
    for root in run.models.values():
        weights = root["module"]
        root["module"] = {
            "lm": {
                "encoder": {
                    "layers.0.w": weights["lm.encoder.layers.0.w"],
                    "layers.0._extra_state": None,
                },
                "b": weights["lm.b"],
            },
            "seen": floats([9.0]),
        }
        root["buffer_names"] = ["seen"]
    return run


def test_modules_within_modules_have_the_names_of_their_parameters(tmp_path: Path) -> None:
    source = nested(tmp_path / "source").write()
    found = held(source)
    assert {name for name, state in found if state == "param"} == {
        "lm.encoder.layers.0.w",
        "lm.b",
        "seen",
    }
    assert not [name for name, state in found if state == "extra"]
    for to in ("deepspeed:zero=3,dp=3", "deepspeed:zero=2,dp=1", "deepspeed-universal"):
        assert api.roundtrip(source, [to]).ok, to
    api.convert(source, tmp_path / "u", "universal")
    api.convert(tmp_path / "u", tmp_path / "out", "deepspeed:zero=2,dp=3")
    module = tree(next(tmp_path.glob("out/*/mp_rank_00_model_states.pt")))["module"]
    assert module["lm"]["encoder"]["layers.0.w"].shape == (3, 4)
    assert module["lm"]["encoder"]["layers.0._extra_state"] is None
    assert (module["lm"]["b"].shape, module["seen"].shape) == ((5,), (1,))


def test_a_dict_that_is_no_module_is_kept_as_it_is(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    (root,) = run.models.values()
    root["module"]["scaler"] = {"amax": floats([2.0]), "steps": 3}
    catalog = read(run.write())
    assert wholes(arrange(catalog))["module.scaler", "extra"].tolist() == [2.0]
    assert {t.name for t in catalog.tensors if t.state == "param"} == {"w", "b"}


# Param groups of pipeline stages.


def test_stages_may_have_different_param_groups(tmp_path: Path) -> None:
    """The first stage has weights alone, the second biases too, and they come first there."""
    groups = {0: [{"0.w": (3, 4)}], 1: [{"1.b": (5,)}, {"1.w": (2, 3)}]}
    run = Run(tmp_path / "source", groups, pp=2)
    decays = {0: [0.1], 1: [0.0, 0.1]}
    for name in run.shards:
        stage = int(name.split("mp_rank_")[1][:2])
        for group, decay in zip(
            run.optimizer(name)["base_optimizer_state"]["param_groups"], decays[stage], strict=True
        ):
            group["weight_decay"] = decay
    for root in list(run.models.values()):
        for name, tensor in root["module"].items():
            layer, _, own = name.partition(".")
            run.models.setdefault(f"layer_{int(layer):02d}-model_states.pt", {})[own] = tensor
        root["module"] = None
    source = run.write()
    catalog = read(source)
    assert catalog.oddities == ()
    assert [(g["weight_decay"], g["params"]) for g in catalog.training.param_groups] == [
        (0.0, ["1.b"]),
        (0.1, ["0.w", "1.w"]),
    ]
    assert api.roundtrip(source, ["deepspeed:zero=1,dp=3"]).ok
    api.convert(source, tmp_path / "out", "deepspeed:zero=1,dp=3")
    kept = []
    for mp_rank in (0, 1):
        path = next(tmp_path.glob(f"out/*/*rank_0_mp_rank_{mp_rank:02d}_optim_states.pt"))
        base = tree(path)["optimizer_state_dict"]["base_optimizer_state"]
        kept.append([group["weight_decay"] for group in base["param_groups"]])
    assert kept == [[0.1], [0.0, 0.1]]


# Experts of several sizes.


def test_layers_may_have_experts_over_different_numbers_of_ranks(tmp_path: Path) -> None:
    """Layer 0 has its two experts on every rank, layer 1 one on each of two ranks."""
    zero = "m.0.deepspeed_moe.experts.deepspeed_experts"
    one = "m.1.deepspeed_moe.experts.deepspeed_experts"
    groups = [{"w": (2, 2)}, {f"{zero}.0.a": (4,), f"{zero}.1.a": (4,)}, {f"{one}.0.a": (4,)}]
    run = Run(tmp_path / "source", groups, dp=2)
    for index, name in enumerate(run.shards):
        optimizer = run.optimizer(name)
        optimizer["partition_count"] = [2, 2, 1]
        optimizer["group_paddings"] = [0, 0, 0]
        own = [500.0 * (index + 1) + i for i in range(4)]
        optimizer["single_partition_of_fp32_groups"][2] = floats(own)
        state = optimizer["base_optimizer_state"]["state"][2]
        state["exp_avg"], state["exp_avg_sq"] = floats(own), floats(own)
        for number, group in enumerate(optimizer["base_optimizer_state"]["param_groups"]):
            if number:
                group.update(moe=True, name=f"ep_size_{number}")
    (root,) = list(run.models.values())
    module = root["module"]
    for layer, start in enumerate((zero, one)):
        for expert in range(2):
            key = f"{start}.{expert}.a"
            values = module.pop(key, None) or floats([500.0 * (expert + 1) + i for i in range(4)])
            if layer:
                values = floats([500.0 * (expert + 1) + i for i in range(4)])
            run.models[f"layer_{layer}_expert_{expert}_mp_rank_00_model_states.pt"] = {key: values}
    root["num_experts"] = [2, 2]
    source = run.write()
    catalog = read(source)
    assert catalog.mesh == {"pp": 1, "tp": 1, "ep": 2, "dp": 2}
    found = wholes(arrange(catalog))
    assert found[f"{one}.1.a", "master"].tolist() == [1000.0, 1001.0, 1002.0, 1003.0]
    assert found[f"{zero}.1.a", "master"].tolist() == [2000.0, 2001.0, 2002.0, 2003.0]
    for to in ("deepspeed:zero=1,dp=4", "deepspeed:zero=2,dp=2", "deepspeed:zero=1,dp=1,ep=1"):
        assert api.roundtrip(source, [to]).ok, to


def test_extra_tensors_are_of_their_type(tmp_path: Path) -> None:
    run = Run(tmp_path, GROUPS)
    (root,) = run.models.values()
    root["module"]["w._extra_state"] = Tensor(DType.U8, (3,), bytes([1, 2, 3]))
    assert held(run.write())["w._extra_state", "param"].tolist() == [1, 2, 3]
