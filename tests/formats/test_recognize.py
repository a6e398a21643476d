"""Which format a folder is of, and everything that is said when it is of none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reshard.errors import ReshardError
from reshard.formats import SOURCES, TARGETS, recognize

LOOKED_FOR = [f"  = note: a {source.title} has {source.marks}" for source in SOURCES.values()]


def _message(path: Path, here: Path) -> list[str]:
    with pytest.raises(ReshardError) as caught:
        recognize(path)
    return str(caught.value).replace(str(here), "...").split("\n")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder whose parent is this test's own, too: messages look at it."""
    made = tmp_path / "here"
    made.mkdir()
    return made


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
        else:
            path.mkdir()
    return folder


def test_real_checkpoints(fixture_checkpoint: Callable[[str], Path]) -> None:
    folder = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    assert recognize(folder) == "deepspeed"
    assert recognize(folder / "global_step3") == "deepspeed"


def test_every_target_has_a_title_and_a_next_step() -> None:
    for target in TARGETS.values():
        assert target.title
        assert "{" not in target.next_step.format(src="A", dst="B").replace('{"load', "")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    _touch(tmp_path, "run-7b/x")
    assert _message(tmp_path / "run_7b", tmp_path) == [
        "error[source-missing]: there is no folder `.../run_7b`",
        "  = help: did you mean `.../run-7b`?",
    ]
    assert _message(tmp_path / "no" / "run", tmp_path) == [
        "error[source-missing]: there is no folder `.../no/run`",
        "  = note: there is no folder `.../no` either",
    ]


def test_a_file(tmp_path: Path) -> None:
    _touch(tmp_path, "notes.txt")
    assert _message(tmp_path / "notes.txt", tmp_path) == [
        "error[unknown-source]: `.../notes.txt` is a file, and a checkpoint is a folder",
    ]


def test_a_file_of_a_checkpoint(tmp_path: Path) -> None:
    _touch(tmp_path, "step/mp_rank_00_model_states.pt")
    assert _message(tmp_path / "step" / "mp_rank_00_model_states.pt", tmp_path) == [
        "error[unknown-source]: `.../step/mp_rank_00_model_states.pt` is a file, and a checkpoint "
        "is a folder",
        "  = help: give the folder: `.../step`",
    ]


def test_an_empty_folder(tmp_path: Path) -> None:
    assert _message(tmp_path, tmp_path) == [
        "error[unknown-source]: `...` is not a known checkpoint format",
        *LOOKED_FOR,
        "  = note: the folder is empty",
    ]


def test_checkpoints_below(tmp_path: Path) -> None:
    for number in range(6):
        _touch(tmp_path, f"checkpoint-{number}/global_step1/mp_rank_00_model_states.pt")
    assert _message(tmp_path, tmp_path) == [
        "error[unknown-source]: `...` is not a known checkpoint format",
        *LOOKED_FOR,
        "  = help: give one of the checkpoints inside: `.../checkpoint-0`, `.../checkpoint-1`, "
        "`.../checkpoint-2`, `.../checkpoint-3`, and 2 more",
    ]


def test_several_files_of_one_folder(tmp_path: Path) -> None:
    _touch(tmp_path, "epoch_1.pt", "epoch_2.pt", "epoch_10.pt", "notes.txt")
    assert _message(tmp_path, tmp_path)[-2:] == [
        "  = note: it holds 3 files that may be checkpoints: `.../epoch_1.pt`, `.../epoch_2.pt`, "
        "`.../epoch_10.pt`",
        "  = help: give one of them, e.g. `.../epoch_10.pt`",
    ]


def test_a_folder_inside_of_a_checkpoint(tmp_path: Path) -> None:
    _touch(tmp_path, "step/mp_rank_00_model_states.pt", "step/logs/today.txt")
    assert _message(tmp_path / "step" / "logs", tmp_path)[-1] == (
        "  = help: give the folder above it: `.../step`"
    )


def test_a_universal_checkpoint_that_lost_its_manifest_and_its_layout(tmp_path: Path) -> None:
    _touch(tmp_path, "model.safetensors.index.json", "exp_avg.safetensors.index.json")
    assert _message(tmp_path, tmp_path) == [
        "error[unknown-source]: `...` is not a known checkpoint format",
        *LOOKED_FOR,
        "  = note: it has files of optimizer states as a universal checkpoint has them, but no "
        "`manifest.json`: the manifest was lost, or not copied",
    ]


def test_weights_for_serving_beside_a_run_are_not_the_run(tmp_path: Path) -> None:
    _touch(tmp_path, "model.safetensors", "config.json")
    assert recognize(tmp_path) == "hf"
    _touch(tmp_path, "global_step3/mp_rank_00_model_states.pt", "latest")
    assert recognize(tmp_path) == "deepspeed"


def test_two_formats_at_once(tmp_path: Path) -> None:
    _touch(tmp_path, "mp_rank_00_model_states.pt", "layout.ucl", "model.safetensors.index.json")
    assert _message(tmp_path, tmp_path) == [
        "error[mixed-source]: `...` looks like 2 formats at once",
        "  = note: it has the marks of a universal checkpoint and a DeepSpeed checkpoint",
        "  = help: move one of them into a folder of its own",
    ]


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (
            ["common.pt", "x.txt"],
            "it has Megatron's `common.pt`, but no `metadata.json`, which is written last: the "
            "save did not end",
        ),
        (
            ["mp_rank_00/"],
            "it has Megatron's `mp_rank_*` folders, but no `model_optim_rng.pt` in them",
        ),
    ],
)
def test_parts_of_a_megatron_checkpoint(names: list[str], note: str, tmp_path: Path) -> None:
    assert f"  = note: {note}" in _message(_touch(tmp_path, *names), tmp_path)


def test_megatron_deepspeed_leaves_both_trackers(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt", run)
    (run / "latest_checkpointed_iteration.txt").write_text("3")
    assert recognize(run) == "deepspeed"


def test_a_run_whose_checkpoints_lie_deep_inside(tmp_path: Path) -> None:
    """As verl's and NeMo-RL's with Megatron: the message names the folders, the last step first."""
    for step in (9, 10):
        folder = tmp_path / f"global_step_{step}" / "actor" / "dist_ckpt"
        (folder / "mp_rank_00").mkdir(parents=True)
        (folder / "mp_rank_00" / "model_optim_rng.pt").touch()
    with pytest.raises(ReshardError) as caught:
        recognize(tmp_path)
    assert str(caught.value).replace(str(tmp_path), "...").splitlines()[-1] == (
        "  = help: give one of the checkpoints inside: `.../global_step_10/actor/dist_ckpt`, "
        "`.../global_step_9/actor/dist_ckpt`"
    )
