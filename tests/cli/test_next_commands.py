"""The command that a conversion prints ends with 0, whatever the target has no place for."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Run

from torch_trees import write_tree

TARGETS = ("deepspeed:zero=1,dp=2", "deepspeed:zero=3,dp=2")


def _follow(run: Run, src: str, target: str) -> str:
    """Convert, run what is printed behind `next:`, and give its options."""
    said = run("convert", src, "out", "--to", target)
    assert said.code == 0, said.err
    command = said.out.partition("\nnext: ")[2].replace("\\\n", "").split("\n\n")[0]
    program, *words = shlex.split(command)
    assert program == "reshard"
    assert run(*words).code == 0, command
    return " ".join(words[3:])


@pytest.mark.parametrize("target", TARGETS)
def test_tensors_that_belong_to_no_parameter(run: Run, here: Path, target: str) -> None:
    """A frozen weight stays a weight where ZeRO-3 makes masters of the others."""
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    state = {"exp_avg": values, "exp_avg_sq": values * 2, "step": np.array(3, np.float32)}
    group = {"lr": 0.5, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    group |= {"params": [0], "param_names": ["a"]}
    tree = {"model": {"a": values, "frozen": values + 1}, "rng": np.arange(9, dtype=np.uint8)}
    (here / "src").mkdir()
    optimizer = {"state": {0: state}, "param_groups": [group]}
    write_tree(here / "src/x.pt", tree | {"optimizer": optimizer, "ema": {"a": values / 2}})
    assert _follow(run, "src", target) == "--states weights,exp_avg,exp_avg_sq,step"


@pytest.mark.parametrize("target", ["deepspeed:zero=1,dp=2", "deepspeed:zero=2,dp=2"])
def test_weights_that_are_made_of_master_weights(
    run: Run, fixture_checkpoint: Callable[[str], Path], target: str
) -> None:
    """ZeRO-3 stores master weights alone; the target has weights besides."""
    source = fixture_checkpoint("z3_bf16_dp3_untied") / "ckpt"
    assert _follow(run, str(source), target) == "--states master,exp_avg,exp_avg_sq,step"
