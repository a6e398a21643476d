"""Sizes of a target are bounded: what no run has is refused at once, with the limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import reshard

WHY = "  = note: every rank has files of its own, which are planned before anything is written\n"


@pytest.fixture
def source(fixture_checkpoint: Callable[[str], Path]) -> Path:
    return fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "dcp:dp=1000000000000",
            "option `dp` of target `dcp` is 1000000000000, and the maximum is 131,072\n"
            f"{WHY}  = help: write it as `dcp:dp=2`",
        ),
        (
            "deepspeed:tp=" + "9" * 5000,
            "option `tp` of target `deepspeed` is 999999999999999999999999..., and the maximum is "
            f"131,072\n{WHY}  = help: write it as `deepspeed:tp=2`",
        ),
        (
            "dcp:dp=100000,tp=2",
            "target `dcp` has dp=100000 * tp=2 = 200,000 ranks, and the maximum is 131,072\n"
            f"{WHY}  = help: choose smaller sizes",
        ),
        (
            "meta:tp=131073",
            "option `tp` of target `meta` is 131073, and the maximum is 131,072\n"
            f"{WHY}  = help: write it as `meta:tp=2`",
        ),
        (
            "deepspeed:sub_group_size=9223372036854775808",
            "option `sub_group_size` of target `deepspeed` is 9223372036854775808, and the "
            "maximum is 9,223,372,036,854,775,807\n"
            "  = help: write it as `deepspeed:sub_group_size=2`",
        ),
    ],
)
def test_what_no_run_has(target: str, said: str, source: Path) -> None:
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.plan(source, target)
    assert str(caught.value) == f"error[bad-option]: {said}"


def test_zeros_in_front_are_no_digits(source: Path) -> None:
    assert reshard.plan(source, "dcp:dp=" + "0" * 30 + "2").target == "dcp:dp=" + "0" * 30 + "2"
