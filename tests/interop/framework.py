"""What the interop tests say to a real framework, and what it answers."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

HERE = Path(__file__).resolve().parent
MAKE_CASE = HERE.parents[1] / "fixtures" / "make" / "make_case.py"


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a real run found after it loaded a folder.

    Args:  equal: states bit-equal to the case's truth.  different: keys of those that are not, or
                  that only one side has.
           losses: of the next three steps.  expected_losses: those of the original run.
           param_groups: learning rate and weight decay in force.
    """

    equal: int
    different: tuple[str, ...]
    losses: tuple[float, ...]
    expected_losses: tuple[float, ...]
    global_steps: int
    client_state: tuple[str, ...]
    param_groups: tuple[dict[str, float], ...]

    @property
    def first_loss_difference(self) -> float:
        """How far the first loss is from the one that the original run had.

        It depends on the restored weights alone; later ones also on the order of sums over ranks.
        """
        return abs(self.losses[0] - self.expected_losses[0])


class Resume(Protocol):
    """See the fixture `resume`."""

    def __call__(
        self,
        case_dir: Path,
        folder: Path,
        *,
        universal: bool = False,
        dp: int | None = None,
        zero: int | None = None,
    ) -> Resumed: ...


def run_framework(command: list[str], tmp_path: Path) -> None:
    """Run a command of the real framework; fail with the end of what it printed if it fails."""
    # The variable that makes the tests find an uninstalled reshard must not reach the framework.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # DeepSpeed looks for its build tool among the commands, not in its own environment.
    environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
