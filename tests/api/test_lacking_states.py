"""A state that is stored for all parameters of a group but a few was lost, and is missed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import reshard

NAME = "model.norm.weight"


@pytest.fixture
def universal(fixture_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder in DeepSpeed's universal form, which has a file for each state."""
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    reshard.convert(source, tmp_path / "source", "deepspeed-universal")
    return tmp_path / "source"


def rendered(path: Path) -> list[str]:
    """The warnings of this kind."""
    return [x.render() for x in reshard.open(path).warnings if x.code == "lacking-states"]


def test_a_state_that_is_lost_is_named(universal: Path, tmp_path: Path) -> None:
    assert rendered(universal) == []
    (file,) = universal.glob(f"*/zero/{NAME}/exp_avg.pt")
    file.unlink()
    text = (
        "warning[lacking-states]: the source does not store `exp_avg` of 1 parameter\n"
        f"  = note: first: `{NAME}`, of which it stores `exp_avg_sq`, `master`, `step`\n"
        "  = note: it stores it of the others in their param group\n"
        "  = help: look for a lost file or key: a loader may refuse the checkpoint without it"
    )
    assert rendered(universal) == [text]
    for target in ("universal", "dcp", "deepspeed-universal"):
        done = reshard.convert(universal, tmp_path / target, target)
        assert text in [item.render() for item in done.report.warnings]
        assert done.next_step.startswith("reshard verify ")  # no loader is promised


def test_a_parameter_without_any_state_was_not_trained(universal: Path) -> None:
    for file in universal.glob(f"*/zero/{NAME}/*.pt"):
        if file.name != "fp32.pt":
            file.unlink()
    assert rendered(universal) == []


def test_states_that_most_do_not_have_are_not_missed(universal: Path) -> None:
    for file in universal.glob("*/zero/*/exp_avg.pt"):
        if NAME not in str(file):
            file.unlink()
    assert rendered(universal) == []
