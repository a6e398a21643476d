"""The real DeepSpeed as fixtures: it resumes from a folder, or makes a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from framework import (
    HERE,
    MAKE_CASE,
    Resume,
    Resumed,
    close_frameworks,
    run_framework,
    shared_memory,
)


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fails where a framework's run has left memory in /dev/shm."""
    before = shared_memory()
    yield
    left = close_frameworks(before)
    assert not left, f"left behind: {left}"


@pytest.fixture
def resume(interop_python: Path, tmp_path: Path) -> Resume:
    """A function that lets the real DeepSpeed resume the run of a case from a folder.

    `case_dir` comes from `fixture_checkpoint`.  `folder` is a native checkpoint, or with
    `universal=True` a folder in DeepSpeed's universal form.  `dp` and `zero` are the resuming
    run's; the case's own where they are not given.  `dp` must divide the 12 rows of a batch.
    """

    def call(
        case_dir: Path,
        folder: Path,
        *,
        universal: bool = False,
        dp: int | None = None,
        zero: int | None = None,
    ) -> Resumed:
        report = tmp_path / "resumed.json"
        report.unlink(missing_ok=True)
        command = [str(interop_python), str(HERE / "resume.py")]
        command += [str(case_dir), str(folder), str(report)]
        command += ["--universal"] if universal else []
        command += ["--dp", str(dp)] if dp is not None else []
        command += ["--zero", str(zero)] if zero is not None else []
        run_framework(command, tmp_path)
        found = json.loads(report.read_text(encoding="utf-8"))
        losses = json.loads((case_dir / "losses.json").read_text(encoding="utf-8"))
        return Resumed(
            equal=found["equal"],
            different=tuple(found["different"]),
            losses=tuple(found["losses"]),
            expected_losses=tuple(losses["next"]),
            global_steps=found["global_steps"],
            client_state=tuple(found["client_state"]),
            param_groups=tuple(found["param_groups"]),
        )

    return call


@pytest.fixture
def make_case(
    interop_python: Path, fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> Callable[..., Path]:
    """A function `(name, like, **changes)` that lets the real DeepSpeed make a case.

    The new case is the case `like` of fixtures/ with other values in its `case.json`.  Returns its
    folder, with `ckpt/`, `truth.safetensors`, `losses.json` and `case.json`.
    """

    def call(name: str, like: str, **changes: Any) -> Path:
        described = json.loads((fixture_checkpoint(like) / "case.json").read_text(encoding="utf-8"))
        case = tmp_path / f"{name}.json"
        case.write_text(json.dumps(described | changes | {"name": name}), encoding="utf-8")
        run_framework([str(interop_python), str(MAKE_CASE), str(case), name], tmp_path)
        return tmp_path / name

    return call
