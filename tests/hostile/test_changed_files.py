"""Every file of real checkpoints: lost, cut, emptied, or exchanged for another.

A conversion must fail, and name the file where it is missing or damaged; or its result must be the
same, because nothing of it is in the file.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reshard import convert
from reshard.errors import ReshardError

Open = Callable[[str], Path]
Facts = tuple[dict[str, object], object, str]

QUICK = ("z1_bf16_dp4_tied", "dcp_dp2")
REST = (
    "autoep_ep2_dp2_z1_bf16",
    "autotp_tp2_dp2_z1_fp32",
    "autotp_tp2_dp2_z3_bf16",
    "dcp_accelerate_dp2",
    "dcp_hsdp2x2_bf16",
    "dcp_tp2_dp2",
    "moe_ep2_dp2_z1_fp32",
    "pipe_pp2_dp2_z1_fp32_tied",
    "toytp_tp2_dp2_z1_fp32",
    "z0_fp32_dp2",
    "z1_bf16opt_dp2_untied",
    "z3_fp32_dp2_untied",
)
CASES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


LOST = ("missing-", "unknown-source", "incomplete-", "unsupported-experts")
"""How the codes begin that tell of a file that is not there."""


class Trial:
    """One checkpoint, what it converts to, and what it converts to when it is changed."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.folder = folder
        convert(source, folder / "right", "universal")
        self.right = _facts(folder / "right")

    @property
    def files(self) -> list[Path]:
        """Every file, relative."""
        found = (path for path in self.source.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.source) for path in found)

    def of(self, change: Callable[[Path], None]) -> str | None:
        """What a conversion of the changed copy says; None if it gives the same."""
        copy, out = self.folder / "copy", self.folder / "out"
        for path in (copy, out):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.source, copy)
        change(copy)
        try:
            convert(copy, out, "universal")
        except ReshardError as error:
            assert not out.exists()
            return str(error)
        assert _facts(out) == self.right, "accepted, and the result is another"
        return None


def _facts(root: Path) -> Facts:
    manifest = json.loads((root / "manifest.json").read_bytes())
    framework = root / "extra" / "framework.json"
    tensors = {
        f"{name} {state}": [entry["digest"], entry["dtype"], entry["shape"]]
        for name, states in manifest["tensors"].items()
        for state, entry in states.items()
    }
    text = framework.read_text(encoding="utf-8") if framework.exists() else ""
    return tensors, manifest["training"], text


@pytest.fixture(params=CASES)
def trial(request: pytest.FixtureRequest, fixture_checkpoint: Open, tmp_path: Path) -> Trial:
    return Trial(fixture_checkpoint(request.param) / "ckpt", tmp_path)


def _matters(file: Path) -> bool:
    """Whether a file holds a part of the checkpoint; others only say where it is, or explain it."""
    return file.name.endswith((".pt", ".distcp", ".metadata"))


def test_a_lost_file_is_missed(trial: Trial) -> None:
    for file in trial.files:
        said = trial.of(lambda root, file=file: (root / file).unlink())  # type: ignore[misc]
        assert said is None or any(f"error[{code}" in said for code in LOST), said
        assert said is not None or not _matters(file), file


def test_half_a_file_is_none(trial: Trial) -> None:
    for file in trial.files:
        data = (trial.source / file).read_bytes()
        for part in (data[: len(data) // 2], b""):
            said = trial.of(lambda root, f=file, p=part: (root / f).write_bytes(p))  # type: ignore[misc]
            assert said is not None or not _matters(file)
            assert said is None or file.name in said, said


def test_exchanged_files_are_noticed(trial: Trial) -> None:
    for first, second in _alike(trial.files):

        def exchange(root: Path, a: Path = first, b: Path = second) -> None:
            one, two = (root / a).read_bytes(), (root / b).read_bytes()
            (root / a).write_bytes(two)
            (root / b).write_bytes(one)

        trial.of(exchange)


def _alike(files: list[Path]) -> Iterator[tuple[Path, Path]]:
    for first, second in itertools.combinations(files, 2):
        if first.suffix == second.suffix:
            yield first, second
