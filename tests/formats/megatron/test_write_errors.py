"""What cannot be written for Megatron is said in full; what it will not restore, too."""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron_targets import LLAMA

from reshard import api
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.formats.megatron.groups import GroupBuilder
from reshard.formats.megatron.modules import description
from reshard.formats.megatron.write_optimizer import check_states, mixed_masters
from reshard.formats.megatron.write_run import no_weights, one_step
from reshard.plan.arrangement import Whole
from reshard.run.run import Group
from reshard.storage.numbers import Number

Fixture = Callable[[str], Path]


def _refused(call: Callable[[], object]) -> str:
    with pytest.raises(ReshardError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (
            "megatron:tp=4",
            """\
error[uneven-target]: axis `kv` of `decoder.layers.0.self_attention.linear_qkv.weight` cannot be cut over tp=4
  = note: 2 / 4 leaves remainder 2
  = note: the source cuts it into 2
  = help: choose a size of tp that divides 2""",
        ),
        (
            "megatron:pp=3",
            """\
error[uneven-target]: axis `layer` of `decoder.layers.0.input_layernorm.weight` cannot be cut over vpp=1, pp=3
  = note: 2 / 3 leaves remainder 2
  = note: the source cuts it into 2
  = help: choose a size of vpp, pp that divides 2""",
        ),
        (
            "megatron:tp=2,etp=3",
            """\
error[bad-option]: option `etp` of target `megatron` is 3, which does not divide tp=2
  = note: ranks with other parts of an expert would write the same file
  = help: write `megatron-dist`, which has no files of ranks""",
        ),
        (
            "megatron:vpp=2",
            """\
error[bad-option]: option `vpp` of target `megatron` is 2 with one pipeline stage
  = note: virtual stages are of a pipeline
  = help: choose a `pp` of at least 2, or leave `vpp` out""",
        ),
        (
            "megatron:ep=2,dp=3",
            """\
error[bad-option]: 3 ranks of a pipeline stage cannot be 2 expert ranks
  = note: tp=1, dp=3; ep * etp = 2 must divide their product
  = help: choose a `dp` that is a multiple of 2""",
        ),
        (
            "megatron:distributed_optimizer=yes",
            """\
error[bad-option]: option `distributed_optimizer` of target `megatron` is `yes`, not `0` or `1`
  = help: write it as `megatron:distributed_optimizer=1`""",
        ),
        (
            "megatron-dist:vpp=2",
            """\
error[unknown-option]: target `megatron-dist` has no option `vpp`
  = note: it takes `tp`, `pp`, `ep`, `dp`, `distributed_optimizer`, `adam`, `iteration`, `samples`
  = help: did you mean `pp`?""",
        ),
    ],
)
def test_an_impossible_target(to: str, message: str, fixture_checkpoint: Fixture) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    assert _refused(lambda: api.plan(source, to, settings=LLAMA)) == message


def test_no_weights() -> None:
    assert (
        str(no_weights("decoder.final_layernorm.weight", ["master"]))
        == """\
error[megatron-weights]: there are no weights of `decoder.final_layernorm.weight`
  = note: the source has `master` of it
  = help: say in which type the model computes, e.g. `--dtype bf16`"""
    )
    assert (
        str(no_weights("w", ["exp_avg"]))
        == """\
error[megatron-weights]: there are no weights of `w`
  = note: the source has `exp_avg` of it
  = help: leave `param` among the states that `--states` lists"""
    )


def test_several_steps() -> None:
    whole = Whole("w", "step", (), DType.F32, (), (), -1)
    values = {"decoder.final_layernorm.weight": 3.0, "output_layer.weight": 4.0}
    steps = {name: Number(whole, value) for name, value in values.items()}
    assert (
        _refused(lambda: one_step(steps, steps))
        == """\
error[megatron-steps]: parameters are at different steps
  = note: `decoder.final_layernorm.weight` is at step 3
  = note: `output_layer.weight` is at step 4
  = note: Megatron keeps one step for all of them
  = help: convert to `universal`, which keeps one per parameter"""
    )


def test_groups_that_do_not_say_what_they_hold() -> None:
    groups = [Group({"wd_mult": 1.0, "lr_mult": mult, "lr": 1.0}) for mult in (1.0, 0.5)]
    groups.append(Group({"wd_mult": 0.0, "lr_mult": 1.0, "lr": 1.0}))
    builder = GroupBuilder(groups, chained=False)
    assert (
        _refused(lambda: builder.build({"output_layer.weight": 2}))
        == """\
error[megatron-groups]: `output_layer.weight` fits 2 of the 3 param groups of the source
  = note: the source does not state which parameters a group has
  = help: leave the optimizer out with `--states weights`"""
    )
    (optimizer,) = builder.build({"decoder.final_layernorm.weight": 1})
    assert [group["wd_mult"] for group in optimizer.groups] == [0.0]


def test_groups_of_another_framework() -> None:
    hot: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    groups = [
        Group(hot, ("a.weight", "a.bias")),
        Group({**hot, "lr": 0.2}, ("b.weight",)),
    ]
    builder = GroupBuilder(groups, chained=False)
    parameters = {"a.weight": 2, "a.bias": 1, "b.weight": 2}
    (optimizer,) = builder.build(parameters)
    assert optimizer.members == {"a.weight": 0, "a.bias": 1, "b.weight": 0}
    assert optimizer.groups == (
        {
            "is_expert_parallel": False,
            "default_config": True,
            "wd_mult": 1.0,
            "lr_mult": 1.0,
            "is_decoupled_lr": False,
            **hot,
            "bias_correction": True,
        },
        {
            "is_expert_parallel": False,
            "default_config": True,
            "wd_mult": 0.0,
            "lr_mult": 1.0,
            "is_decoupled_lr": False,
            **hot,
            "weight_decay": 0.0,
            "bias_correction": True,
        },
    )
    (warning,) = builder.warnings
    assert (
        warning.render()
        == """\
warning[megatron-groups]: param groups become those that Megatron makes
  = note: those that decay had different `lr`: the first one's is kept
  = note: Megatron lets weights decay and biases and norms not, unlike the source for `a.bias`
  = help: set the hyper-parameters in the run's arguments"""
    )


def test_experts_over_several_ranks_have_an_optimizer_of_their_own() -> None:
    groups = [
        Group({"is_expert_parallel": False, "wd_mult": mult, "lr": 1.0}) for mult in (0.0, 1.0)
    ]
    names = {
        "decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight": 2,
        "decoder.final_layernorm.weight": 1,
        "output_layer.weight": 2,
    }
    dense, experts = GroupBuilder(groups, chained=True).build(names)
    assert [g["wd_mult"] for g in dense.groups] == [1.0, 0.0]
    assert dense.members == {"decoder.final_layernorm.weight": 1, "output_layer.weight": 0}
    assert [(g["wd_mult"], g["is_expert_parallel"]) for g in experts.groups] == [(1.0, True)]
    (together,) = GroupBuilder(groups, chained=False).build(names)
    assert together.members == dict(zip(names, (0, 1, 0), strict=True))


def test_parameters_are_in_the_order_of_megatrons_modules() -> None:
    names = [
        "output_layer.weight",
        "decoder.final_layernorm.bias",
        "decoder.final_layernorm.weight",
        "decoder.layers.10.input_layernorm.weight",
        "decoder.layers.9.mlp.shared_experts.linear_fc2.weight",
        "decoder.layers.9.mlp.shared_experts.gate_weight",
        "decoder.layers.9.mlp.experts.linear_fc1.weight1",
        "decoder.layers.9.mlp.experts.linear_fc1.bias0",
        "decoder.layers.9.mlp.experts.linear_fc1.weight0",
        "decoder.layers.9.mlp.router.weight",
        "decoder.layers.9.self_attention.q_layernorm.weight",
        "decoder.layers.9.self_attention.linear_qkv.bias",
        "decoder.layers.9.self_attention.linear_qkv.weight",
        "decoder.layers.9.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.9.self_attention.linear_proj.weight",
        "embedding.position_embeddings.weight",
        "embedding.word_embeddings.weight",
    ]
    (order,) = description().orders
    assert all(map(order.has, names))
    assert sorted(names, key=order.key) == names[::-1]
    assert not order.has("decoder.layers.0.mixer.A_log")
    assert not order.has("decoder.layers.0.mlp.linear_fc1.scale")


def test_states_that_the_distributed_optimizer_does_not_keep() -> None:
    check_states("output_layer.weight", ["exp_avg_sq", "exp_avg"])
    assert (
        _refused(lambda: check_states("output_layer.weight", ["momentum"]))
        == """\
error[megatron-distributed]: the optimizer states of `output_layer.weight` are not those of Megatron's distributed optimizer
  = note: they are `momentum`
  = note: the distributed optimizer has `exp_avg` and `exp_avg_sq`
  = help: write `distributed_optimizer=0`, which can have any states
  = help: or leave the optimizer out with `--states weights`"""
    )
    assert (
        str(mixed_masters({"master": "a.weight", "param": "b.weight"}))
        == """\
error[megatron-distributed]: some parameters have master weights, and others of the same type have none
  = note: `a.weight` has `master`
  = note: `b.weight` has `param`
  = help: leave the optimizer out with `--states weights`"""
    )


def test_what_megatron_must_be_told(fixture_checkpoint: Fixture) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    found = api.plan(source, "megatron", settings=LLAMA, model="llama").warnings
    assert (
        "\n\n".join(item.render() for item in found if item.code != "keys-left")
        == """\
warning[megatron-resume]: the source has no learning rate schedule of Megatron's
  = note: a constant one at 0 samples is written
  = note: the number of samples is not known
  = help: resume with `--override-opt-param-scheduler`
  = help: give the samples consumed with `samples=N`

warning[megatron-resume]: random number generators start anew
  = note: the source has none
  = help: resume with `--no-load-rng`"""
    )
    found = api.plan(source, "megatron", settings=LLAMA, model="llama", states="weights").warnings
    assert (
        "\n\n".join(item.render() for item in found if item.code != "keys-left")
        == """\
warning[megatron-resume]: the optimizer starts anew
  = note: no states of an optimizer with their param groups are written
  = help: resume with `--no-load-optim`, or with `--finetune`

warning[megatron-resume]: random number generators start anew
  = note: the source has none
  = help: resume with `--no-load-rng`"""
    )
