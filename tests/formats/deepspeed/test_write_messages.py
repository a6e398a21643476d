"""What writing DeepSpeed's forms refuses or warns of: the pages of docs/errors say it in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from deepspeed_forge import Run, Tensor, floats
from deepspeed_oracle import arrange
from deepspeed_targets import arranged, prepared, with_framework

import reshard
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.formats.deepspeed.read import read
from reshard.plan.arrangement import Arrangement
from reshard.plan.catalog import Fragment
from reshard.run.run import Run as Training

Open = Callable[[str], Path]
Scenario = Callable[[Path, Open], tuple[Arrangement, str]]
SCENARIOS: dict[str, Scenario] = {}

PAGES = Path(__file__).resolve().parents[3] / "docs" / "errors"
GROUPS = [{"w": (3, 4), "b": (5,)}]
NATIVE = "deepspeed:zero=1,dp=3"


def scenario(make: Scenario) -> Scenario:
    """Register what ends in the message whose code is the function's name."""
    SCENARIOS[make.__name__.replace("_", "-")] = make
    return make


def made(path: Path, **settings: object) -> Run:
    """A small run."""
    return Run(path / "run", GROUPS, **settings)  # type: ignore[arg-type]


def without_groups(arrangement: Arrangement) -> Arrangement:
    """The same tensors from a source that knows nothing but them."""
    return replace(arrangement, catalog=replace(arrangement.catalog, training=Training()))


# What is refused.


@scenario
def numbers_disagree(path: Path, cases: Open) -> tuple[Arrangement, str]:
    catalog = read(made(path, pp=1, tp=1).write())
    other = [
        replace(
            tensor,
            coord=(("tp", 1),),
            fragments=(Fragment(0, 1, "a.pt", 0, None, bytes.fromhex("00008040")),),
        )
        for tensor in catalog.tensors
        if tensor.state == "step"
    ]
    mesh = {**catalog.mesh, "tp": 2}
    tensors = tuple(
        replace(tensor, coord=(("tp", 0),)) if tensor.state == "step" else tensor
        for tensor in catalog.tensors
    )
    return arrange(replace(catalog, mesh=mesh, tensors=(*tensors, *other))), NATIVE


@scenario
def unreadable_number(path: Path, cases: Open) -> tuple[Arrangement, str]:
    step = Tensor(DType.C64, (), bytes(8))
    return arranged(made(path, step=step).write()), NATIVE


@scenario
def deepspeed_tensor_cut(path: Path, cases: Open) -> tuple[Arrangement, str]:
    source = Run(path / "run", {rank: [{"w": (3, 4)}] for rank in (0, 1)}, dp=1, tp=2).write()
    layout = 'layout l {\n    mesh tp\n    "w" = [(a over tp + b:1), cols]\n}\n'
    return arrange(read(source, strict_layout=False), layout), "deepspeed-universal"


@scenario
def deepspeed_name(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(Run(path / "run", [{"../../w": (3, 4)}]).write()), "deepspeed-universal"


@scenario
def deepspeed_experts(path: Path, cases: Open) -> tuple[Arrangement, str]:
    source = cases("moe_ep2_dp2_z1_fp32") / "ckpt"
    return arranged(source), "deepspeed-universal:ep=3"


@scenario
def deepspeed_steps(path: Path, cases: Open) -> tuple[Arrangement, str]:
    catalog = read(made(path).write())
    tensors = tuple(
        replace(
            tensor,
            fragments=(replace(tensor.fragments[0], literal=bytes.fromhex("00008040")),),
        )
        if (tensor.name, tensor.state) == ("b", "step")
        else tensor
        for tensor in catalog.tensors
    )
    return arrange(replace(catalog, tensors=tensors)), NATIVE


@scenario
def deepspeed_missing_state(path: Path, cases: Open) -> tuple[Arrangement, str]:
    catalog = read(made(path).write())
    tensors = tuple(t for t in catalog.tensors if (t.name, t.state) != ("b", "exp_avg_sq"))
    return arrange(replace(catalog, tensors=tensors)), NATIVE


@scenario
def deepspeed_mixed_group(path: Path, cases: Open) -> tuple[Arrangement, str]:
    arrangement = arranged(cases("moe_ep2_dp2_z1_fp32") / "ckpt")
    training = arrangement.catalog.training
    names = [str(name) for group in training.param_groups for name in group["params"]]  # type: ignore[attr-defined]
    one = (training.param_groups[0].with_params(lambda _: names),)
    catalog = replace(arrangement.catalog, training=replace(training, param_groups=one))
    return replace(arrangement, catalog=catalog), "deepspeed"


@scenario
def deepspeed_layer(path: Path, cases: Open) -> tuple[Arrangement, str]:
    layers = {"0": {"weight": "w"}, "1": {"weight": "1.weight", "bias": "1.bias"}}
    arrangement = arranged(made(path).write())
    return with_framework(arrangement, pipeline={"layers": layers}), NATIVE


@scenario
def deepspeed_pipeline_stage(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(cases("pipe_pp2_dp2_z1_fp32_tied") / "ckpt"), "deepspeed:zero=2"


@scenario
def deepspeed_no_param_groups(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return without_groups(arranged(made(path).write())), NATIVE


@scenario
def deepspeed_param_groups(path: Path, cases: Open) -> tuple[Arrangement, str]:
    arrangement = arranged(made(path).write())
    training = arrangement.catalog.training
    groups = (training.param_groups[0].with_params(lambda _: ["w", "bias"]),)
    catalog = replace(arrangement.catalog, training=replace(training, param_groups=groups))
    return replace(arrangement, catalog=catalog), NATIVE


@scenario
def deepspeed_no_settings(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(cases("z2_fp32_dp2_elastic") / "ckpt"), NATIVE


@scenario
def deepspeed_no_scaler(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(made(path).write()), "deepspeed:zero=3,dtype=fp16"


# What is warned of.


@scenario
def deepspeed_defaults(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return without_groups(arranged(made(path).write())), "deepspeed-universal"


@scenario
def deepspeed_not_restored(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(cases("z1_fp32_dp2_frozen") / "ckpt"), "deepspeed-universal"


@scenario
def deepspeed_group_settings(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(cases("z1_fp32_dp2_untied") / "ckpt"), "deepspeed-universal"


@scenario
def deepspeed_round_robin(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(cases("z1_fp32_dp4_rr") / "ckpt"), "deepspeed-universal"


@scenario
def deepspeed_no_states(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(made(path, trained=False).write()), "deepspeed-universal"


@scenario
def deepspeed_stage3_states(path: Path, cases: Open) -> tuple[Arrangement, str]:
    run = made(path)
    for name in run.shards:
        for own in run.optimizer(name)["base_optimizer_state"]["state"].values():
            own["momentum_buffer"] = own.pop("exp_avg")
            del own["exp_avg_sq"]
    return arranged(run.write()), "deepspeed-universal"


@scenario
def deepspeed_no_master(path: Path, cases: Open) -> tuple[Arrangement, str]:
    catalog = read(cases("z1_bf16_dp4_tied") / "ckpt")
    tensors = tuple(tensor for tensor in catalog.tensors if tensor.state == "param")
    return arrange(replace(catalog, tensors=tensors)), NATIVE


@scenario
def deepspeed_rank_state(path: Path, cases: Open) -> tuple[Arrangement, str]:
    run = made(path, stage=3)
    for rank in range(2):
        model = run.models[f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"]
        model["rng_state"] = floats([float(rank)])
    return arranged(run.write()), "deepspeed:dp=3"


@scenario
def deepspeed_kept_state(path: Path, cases: Open) -> tuple[Arrangement, str]:
    run = made(path)
    for name in run.shards:
        run.optimizer(name)["base_optimizer_state"]["state"][0]["worker_error"] = Tensor(
            DType.F32, (2, 2), bytes(range(16))
        )
    return arranged(run.write()), "deepspeed:zero=1,dp=3"


@scenario
def deepspeed_universal_state(path: Path, cases: Open) -> tuple[Arrangement, str]:
    run = made(path)
    for name in run.shards:
        state = run.optimizer(name)["base_optimizer_state"]["state"][0]
        state["mu_product"] = floats([0.5], ())
    return arranged(run.write()), "deepspeed-universal"


@scenario
def deepspeed_unstored_name(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(cases("autoep_ep2_dp2_z3_bf16") / "ckpt"), "deepspeed:zero=1"


@scenario
def deepspeed_needs_setting(path: Path, cases: Open) -> tuple[Arrangement, str]:
    return arranged(cases("z2_bf16_dp2_align") / "ckpt"), NATIVE


def said(code: str, path: Path, cases: Open) -> str:
    """The message of that code which a scenario ends in."""
    try:
        arrangement, to = SCENARIOS[code](path, cases)
        items = prepared(arrangement, to).warnings
    except ReshardError as error:
        items = error.diagnostics
    (item,) = [item for item in items if item.code == code]
    return item.render()


@pytest.mark.parametrize("code", SCENARIOS)
def test_the_page_shows_the_whole_message(
    code: str, fixture_checkpoint: Open, tmp_path: Path
) -> None:
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    example = page.partition("## Example\n\n```text\n")[2].partition("\n```")[0]
    assert said(code, tmp_path, fixture_checkpoint) == example
    if SCENARIOS[code] is deepspeed_name:
        assert not any(path.name == "w" for path in tmp_path.rglob("*"))


OPTIONS = [
    (
        "deepspeed:zero=4",
        "option `zero` of target `deepspeed` is `4`, not one of 1, 2, 3\n"
        "  = help: write it as `deepspeed:zero=1`",
    ),
    (
        "deepspeed:zero=0",
        "option `zero` of target `deepspeed` is `0`, not one of 1, 2, 3\n"
        "  = note: without ZeRO the optimizer's states are not named, so they are not written\n"
        "  = help: write it as `deepspeed:zero=1`",
    ),
    (
        "deepspeed:dtype=int8",
        "option `dtype` of target `deepspeed` is `int8`\n"
        "  = note: it is one of `fp32`, `bf16`, `fp16`",
    ),
    (
        "deepspeed:round_robin=yes",
        "option `round_robin` of target `deepspeed` is `yes`, not 0 or 1\n"
        "  = help: write 1 if the run that loads has `round_robin_gradients` in its configuration",
    ),
    (
        "deepspeed:dp=3,ep=2",
        "3 data-parallel ranks cannot be 2 expert-parallel ones\n"
        "  = note: every expert-parallel rank has as many data-parallel ranks\n"
        "  = help: choose a `dp` that is a multiple of ep=2",
    ),
    (
        "deepspeed-universal:tag=..",
        "option `tag` of target `deepspeed-universal` is `..`, which cannot name a folder\n"
        "  = help: use letters, digits, `.`, `_`, and `-`",
    ),
]


@pytest.mark.parametrize(("to", "text"), OPTIONS)
def test_an_option_that_cannot_be(to: str, text: str, tmp_path: Path) -> None:
    arrangement = arranged(made(tmp_path).write())
    with pytest.raises(ReshardError) as caught:
        prepared(arrangement, to)
    assert str(caught.value) == f"error[bad-option]: {text}"


def test_experts_that_deepspeed_would_not_load(fixture_checkpoint: Open) -> None:
    fused = arranged(fixture_checkpoint("autoep_ep2_dp2_z1_bf16") / "ckpt")
    with pytest.raises(ReshardError) as caught:
        prepared(fused, "deepspeed:ep=1")
    assert str(caught.value) == (
        "error[deepspeed-experts]: experts of AutoEP cannot go from 2 expert-parallel ranks to 1\n"
        "  = note: the native files say which rank has which expert, and how they are packed\n"
        "  = help: convert to `deepspeed-universal`, which loads at any number of ranks"
    )
    numbered = arranged(fixture_checkpoint("moe_ep2_dp2_z1_fp32") / "ckpt")
    with pytest.raises(ReshardError) as caught:
        prepared(numbered, "deepspeed:zero=3")
    assert str(caught.value) == (
        "error[deepspeed-experts]: DeepSpeed has no stage 3 for experts of `deepspeed.moe`\n"
        "  = note: `moe1.deepspeed_moe.experts.deepspeed_experts.0.a.weight` is one of them\n"
        "  = help: choose `zero=1` or `zero=2`"
    )


def test_layers_of_experts_that_are_whole_on_every_rank(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = fixture_checkpoint("run_mixed_z1") / "ckpt"
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "deepspeed:zero=1,dp=4,ep=4")
    assert str(caught.value) == (
        "error[deepspeed-experts]: experts that every rank has cannot be shared by 4 ranks\n"
        "  = note: `moes.0.deepspeed_moe.experts.deepspeed_experts.0.a.weight` is one of them; the "
        "source does not cut its layer\n"
        "  = help: choose `ep=1`, or convert to `universal`"
    )
