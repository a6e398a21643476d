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

from reshard import convert, plan
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

    def of(self, change: Callable[[Path], None], *, whole: bool = True) -> str | None:
        """What a conversion of the changed copy says; None if it gives the same.

        Args:  whole: whether that goes for what is carried along as it is, too.
        """
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
        found = _facts(out)
        assert found[0] == self.right[0], "accepted, and tensors are others"
        assert found == self.right or not whole, "accepted, and the result is another"
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
        change = lambda root, file=file: (root / file).unlink()  # noqa: E731
        said = trial.of(change, whole=_matters(file))
        assert said is None or any(f"error[{code}" in said for code in LOST), said
        assert said is not None or not _matters(file), file


def test_half_a_file_is_none(trial: Trial) -> None:
    for file in trial.files:
        data = (trial.source / file).read_bytes()
        for part in (data[: len(data) // 2], b""):
            change = lambda root, f=file, p=part: (root / f).write_bytes(p)  # noqa: E731
            said = trial.of(change, whole=_matters(file))
            assert said is not None or not _matters(file)
            assert said is None or file.name in said, said


def test_exchanged_files_are_noticed(trial: Trial) -> None:
    for first, second in _alike(trial.files):

        def exchange(root: Path, a: Path = first, b: Path = second) -> None:
            one, two = (root / a).read_bytes(), (root / b).read_bytes()
            (root / a).write_bytes(two)
            (root / b).write_bytes(one)

        trial.of(exchange)


def test_a_file_under_the_name_of_another(fixture_checkpoint: Open, tmp_path: Path) -> None:
    shutil.copytree(fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt", tmp_path / "ckpt")
    step = tmp_path / "ckpt" / "global_step3"
    shutil.copy(step / "mp_rank_01_model_states.pt", step / "mp_rank_00_model_states.pt")
    with pytest.raises(ReshardError) as failed:
        plan(tmp_path / "ckpt", "universal")
    assert str(failed.value) == (
        "error[renamed-file]: mp_rank_00_model_states.pt was written as "
        "mp_rank_01_model_states.pt\n"
        "  = note: the name of a rank's file states which part of the model it holds\n"
        f"  = note: in {step}\n"
        "  = help: give it its own name again, or copy the checkpoint again"
    )


def test_the_partition_of_another_rank(fixture_checkpoint: Open, tmp_path: Path) -> None:
    shutil.copytree(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt", tmp_path / "ckpt")
    step = tmp_path / "ckpt" / "global_step3"
    first, third = (
        step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 2)
    )
    one, two = first.read_bytes(), third.read_bytes()
    # Under their own names within, as a writer without file names leaves them.
    first.write_bytes(two.replace(b"pp_rank_2_mp", b"pp_rank_0_mp"))
    third.write_bytes(one.replace(b"pp_rank_0_mp", b"pp_rank_2_mp"))
    with pytest.raises(ReshardError) as failed:
        plan(tmp_path / "ckpt", "universal")
    assert str(failed.value) == (
        "error[partition-mismatch]: bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt holds "
        "`model.layers.0.mlp.down_proj.weight`, and partition 0 of group 0 does not\n"
        "  = note: by its `param_slice_mappings`, and by `param_shapes` in "
        "mp_rank_00_model_states.pt\n"
        "  = help: the file may be that of another rank or run; copy it again"
    )


def _alike(files: list[Path]) -> Iterator[tuple[Path, Path]]:
    for first, second in itertools.combinations(files, 2):
        if first.suffix == second.suffix:
            yield first, second
