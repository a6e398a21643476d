"""`plan`, `convert`, and `verify` as functions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from real_cases import READABLE

Fixture = Callable[[str], Path]


@pytest.mark.parametrize("name", READABLE)
def test_a_universal_checkpoint_holds_what_its_source_holds(
    name: str, fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    done = reshard.convert(source, tmp_path / "out", "universal")
    assert {fate.kind for fate in done.report.fates} <= {"written", "averaged"}
    assert sum(nbytes for _, nbytes in done.report.files) == done.report.nbytes_written
    on_disk = {
        path.relative_to(tmp_path / "out").as_posix(): path.stat().st_size
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert dict(done.report.files) == on_disk
    assert reshard.verify(source, tmp_path / "out").ok
    assert reshard.verify(tmp_path / "out").ok
    before, after = reshard.open(source), reshard.open(tmp_path / "out")
    assert after.training == before.training
    assert after.aliases == before.aliases


@pytest.mark.parametrize("name", ["z1_bf16_dp4_tied", "z3_fp32_dp2_frozen", "moe_ep2_dp4_z1_bf16"])
def test_the_same_source_gives_the_same_bytes(
    name: str, fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    for folder in ("a", "b"):
        reshard.convert(source, tmp_path / folder, "universal")
    reshard.convert(tmp_path / "a", tmp_path / "c", "universal")
    names = [path.name for path in (tmp_path / "a").iterdir() if path.name != "manifest.json"]
    for file in names:
        if (tmp_path / "a" / file).is_file():
            data = (tmp_path / "a" / file).read_bytes()
            assert data == (tmp_path / "b" / file).read_bytes(), file
            if file.endswith((".safetensors", ".index.json")):
                assert data == (tmp_path / "c" / file).read_bytes(), file


def test_progress_ends_with_everything(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    seen = []
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    reshard.convert(source, tmp_path / "out", "universal", on_progress=seen.append)
    assert [item.nbytes_done for item in seen] == sorted(item.nbytes_done for item in seen)
    assert seen[-1].nbytes_done == seen[-1].nbytes_total > 0


def test_a_dry_run_writes_nothing(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    done = reshard.convert(source, tmp_path / "out", "universal", dry_run=True)
    assert done.dry_run
    assert list(tmp_path.iterdir()) == []
    assert done.report == reshard.plan(source, "universal")


def test_a_dry_run_fails_as_the_real_one_does(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    messages = []
    for dry_run in (True, False):
        with pytest.raises(reshard.ReshardError) as caught:
            reshard.convert(source, tmp_path / "out", "universal", dry_run=dry_run)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_force_replaces_a_checkpoint(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    first = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    second = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    reshard.convert(first, tmp_path / "out", "universal")
    reshard.convert(second, tmp_path / "out", "universal", force=True)
    assert reshard.verify(second, tmp_path / "out").ok


@pytest.mark.parametrize(
    ("there", "how"),
    [
        ("ckpt", "is the source itself"),
        ("ckpt/out", "is inside the source `{src}`"),
        (".", "contains the source `{src}`"),
        ("link/out", "is inside the source `{src}`"),
    ],
)
def test_source_and_target_are_apart(
    there: str, how: str, fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "ckpt")
    src, dst = tmp_path / "ckpt", tmp_path / there
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.convert(src, dst, "universal")
    assert str(caught.value) == (
        f"error[output-overlap]: the target `{dst}` {how.format(src=src)}\n"
        "  = note: reshard never changes a source\n"
        "  = help: choose a folder outside of the source"
    )


def test_a_source_that_is_linked_from_the_target_stays(
    fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    dst, src = tmp_path / "D", tmp_path / "S"
    reshard.convert(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt", dst, "deepspeed:zero=1,dp=2")
    reshard.convert(dst, tmp_path / "U", "universal")

    def refused(source: Path, how: str) -> None:
        with pytest.raises(reshard.ReshardError) as caught:
            reshard.convert(source, dst, "hf", states="weights", names="source", force=True)
        assert str(caught.value) == (
            f"error[output-overlap]: the target `{dst}` {how}\n"
            "  = note: reshard never changes a source\n"
            "  = help: choose a folder outside of the source"
        )
        assert reshard.verify(tmp_path / "U", dst).ok

    def fresh() -> Path:
        shutil.rmtree(src, ignore_errors=True)
        src.mkdir()
        return src

    fresh()  # the folder of a step
    (src / "latest").write_text("global_step3")
    (src / "global_step3").symlink_to(dst / "global_step3")
    refused(src, f"contains a file that the source reads, `{src}/global_step3`")
    fresh()  # every file, and those through a link that leads to a link
    (src / "global_step3").mkdir()
    (tmp_path / "between").mkdir(exist_ok=True)
    for file in (dst / "global_step3").iterdir():
        (tmp_path / "between" / file.name).unlink(missing_ok=True)
        (tmp_path / "between" / file.name).symlink_to(file)
        (src / "global_step3" / file.name).symlink_to(tmp_path / "between" / file.name)
    (src / "latest").write_text("global_step3")
    with pytest.raises(reshard.ReshardError, match="output-overlap"):
        reshard.convert(src, dst, "hf", states="weights", names="source", force=True)
    fresh()  # a folder of links, which the source's own link leads to
    (src / "latest").write_text("global_step3")
    (src / "global_step3").symlink_to(tmp_path / "between")
    with pytest.raises(reshard.ReshardError, match=r"output-overlap.*that the source reads"):
        reshard.convert(src, dst, "hf", states="weights", names="source", force=True)
    # The same without links in the way: through one in the target's path.
    (tmp_path / "alias").symlink_to(tmp_path)
    with pytest.raises(reshard.ReshardError, match="is the source itself"):
        reshard.convert(
            dst, tmp_path / "alias" / "D", "hf", states="weights", names="source", force=True
        )
    assert reshard.verify(tmp_path / "U", dst).ok


def test_values_are_plain_json(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt"
    done = reshard.convert(source, tmp_path / "out", "universal")
    values = [done, done.report, reshard.inspect(source), reshard.verify(source, tmp_path / "out")]
    for value in values:
        document = value.to_json()
        assert json.loads(json.dumps(document)) == document


def test_importing_it_imports_nothing() -> None:
    code = (
        "import sys, reshard\n"
        "assert dir(reshard) and 'open' in dir(reshard)\n"
        "print(*(name for name in sys.modules if name.startswith('reshard.')))\n"
        "assert not {'numpy', 'lark', 'torch', 'typer'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_function_and_the_package_plan_live_together() -> None:
    import reshard.plan.catalog
    from reshard.plan.plan import Plan

    assert reshard.plan.__name__ == "plan"
    assert callable(reshard.plan)
    assert Plan.__module__ == "reshard.plan.plan"


def test_an_unknown_name_of_the_package() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'opne'"):
        reshard.opne  # type: ignore[attr-defined]  # noqa: B018


def test_an_fp32_run_may_keep_its_master_weights_as_its_weights(
    fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    """The plain optimizer of fp32 has no master weights apart; ZeRO has."""
    source = fixture_checkpoint("z0_fp32_dp2") / "ckpt"
    reshard.convert(source, tmp_path / "out", "deepspeed:zero=2,dp=3")
    assert "master" not in reshard.open(source).states
    assert "master" in reshard.open(tmp_path / "out").states
    assert reshard.verify(source, tmp_path / "out").ok
    assert reshard.verify(tmp_path / "out", source).ok
    bf16 = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    reshard.convert(bf16, tmp_path / "weights", "universal", states="weights")
    found = reshard.verify(bf16, tmp_path / "weights")
    assert {item.state for item in found.mismatches} == {"master", "exp_avg", "exp_avg_sq", "step"}
