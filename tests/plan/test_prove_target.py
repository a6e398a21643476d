"""The target's half of the coverage proof."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reshard import formats
from reshard.api.source import open_source
from reshard.plan.output import Output
from reshard.plan.prove_target import prove_target
from reshard.plan.target import parse_target


def _output(path: Path, to: str) -> tuple[object, Output]:
    arrangement = open_source(path).arrangement
    return arrangement, formats.prepare(arrangement, parse_target(to, formats.TARGETS), {})


def test_every_tensor_has_a_place(fixture_checkpoint: Callable[[str], Path]) -> None:
    path = fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt"
    arrangement, output = _output(path, "universal")
    assert prove_target(arrangement, output.placed, ()) == 90


@pytest.mark.parametrize("to", ["universal", "deepspeed:zero=3,dp=3"])
def test_a_forgotten_tensor_is_a_bug(to: str, fixture_checkpoint: Callable[[str], Path]) -> None:
    path = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    arrangement, output = _output(path, to)
    excused = {(name, state) for name, state, _ in (*output.dropped, *output.folded)}
    placed = [item for item in output.placed if item.spec.state != "exp_avg"]
    some = next(item for item in output.placed if item.spec.state == "exp_avg")
    with pytest.raises(RuntimeError) as caught:
        prove_target(arrangement, [*placed, some], excused)
    assert str(caught.value).startswith("the target was given no place for all of ")
    assert str(caught.value).endswith(" (exp_avg)")
