"""Nothing of a real checkpoint is dropped in silence: every file and every key is accounted for."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accounting import unaccounted
from formats.dcp.dcp_forge import Forge, counted
from real_cases import READABLE
from reshard import formats
from reshard.errors import ReshardError
from torch_files import loaded, saved

SHARED = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
"""More real checkpoints, where they lie beside the checkout."""
NAMES = {"ckpt", "state", "state_nodcp", "consolidated", "sharded_only"}


@pytest.mark.parametrize("name", READABLE)
def test_every_fixture(name: str, fixture_checkpoint: Callable[[str], Path]) -> None:
    assert unaccounted(fixture_checkpoint(name) / "ckpt") == []


@pytest.mark.parametrize(
    "name",
    [
        *("z1_fp32_dp2_untied", "z0_fp32_dp2", "pipe_pp2_dp2_z1_fp32_tied"),
        *("megatron_untied_tp2_pp2", "megatron_do_dp2_buckets", "nanotron_tp1_z0"),
        *("megatron_dist_untied", "megatron_dist_reshardable_tp2_dp2", "nanotron_tp2_pp2_dp2_z1"),
    ],
)
def test_an_entry_that_nobody_knows(
    name: str, fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Anywhere in any file it is kept, listed, or refused."""
    folder = tmp_path / "ckpt"
    shutil.copytree(fixture_checkpoint(name) / "ckpt", folder)
    seen = set()
    silent = []
    for path in sorted(folder.rglob("*.pt")):
        seed = path.read_bytes()
        for index, (key, _) in enumerate(_dicts(loaded(path))):
            kind = re.sub(r"\d+", "#", f"{path.name}: {key}")
            if kind in seen or "param_slice_mappings" in key:  # it says where states lie
                continue
            seen.add(kind)
            tree = loaded(path)
            list(_dicts(tree))[index][1]["nobody_knows"] = "what this is"
            path.write_bytes(saved(tree, path.stem))
            try:
                silent += [f"{kind}: {item}" for item in unaccounted(folder)]
            except ReshardError:
                continue  # it is refused
            finally:
                path.write_bytes(seed)
    assert silent == []
    assert len(seen) > 5


def test_an_entry_of_a_distributed_checkpoint_that_nobody_knows(tmp_path: Path) -> None:
    """Wherever it stands in the state dict, in an object, or in `.metadata`."""
    above: list[tuple[str | int, ...]] = [
        (),
        ("model",),
        ("optim",),
        ("optim", "state"),
        ("optim", "state", "w"),
        ("optim", "param_groups"),
        ("optim", "param_groups", 0),
        ("lr_scheduler",),
        ("train_state",),
    ]
    for index, place in enumerate(above):
        for kind, value in (
            ("object", "what this is"),
            ("dict", {"a": [1, {"b": "what this is"}]}),
        ):
            forge = _distributed(tmp_path / f"{index}{kind}")
            path = (*place, "nobody_knows")
            folder = forge.object(".".join(map(str, path)), value, path=path).write()
            assert unaccounted(folder) == [], path
            catalog = formats.read("dcp", folder)
            known = json.dumps([catalog.training.framework, catalog.training.param_groups])
            assert "what this is" in known or catalog.left, path
        forge = _distributed(tmp_path / f"{index}tensor")
        path = (*place, "nobody_knows")
        folder = forge.tensor(".".join(map(str, path)), counted(5), path=path).write()
        assert unaccounted(folder) == [], path
    folder = _distributed(tmp_path / "root").write(nobody_knows="what this is", empty={})
    [left] = formats.read("dcp", folder).left
    assert (left.file, left.key) == (".metadata", "nobody_knows")


def _distributed(folder: Path) -> Forge:
    forge = Forge(folder).tensor("model.w", counted(4, 3), path=("model", "w"))
    path: tuple[str | int, ...] = ("optim", "state", "w", "exp_avg")
    forge.tensor("optim.state.w.exp_avg", counted(4, 3), path=path)
    for key, value in (("lr", 0.5), ("params", ["w"])):
        path = ("optim", "param_groups", 0, key)
        forge.object(f"optim.param_groups.0.{key}", value, path=path)
    return forge.object("lr_scheduler.last_epoch", 3, path=("lr_scheduler", "last_epoch"))


def _dicts(tree: Any, key: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every dict of a tree, with the keys that lead to it."""
    if isinstance(tree, dict):
        yield key, tree
        for name, item in tree.items():
            yield from _dicts(item, f"{key}.{name}")
    elif type(tree) in (list, tuple):
        for index, item in enumerate(tree):
            yield from _dicts(item, f"{key}.{index}")


@pytest.mark.slow
def test_every_shared_checkpoint(tmp_path: Path, tell: Callable[[str, str], None]) -> None:
    read, refused, faults = 0, 0, {}
    for archive in sorted(SHARED.glob("*.tar.xz")):
        with tarfile.open(archive) as file:
            file.extractall(tmp_path, filter="data")
    for folder in _checkpoints(tmp_path):
        try:
            found = unaccounted(folder)
        except ReshardError:
            refused += 1
            continue
        read += 1
        if found:
            faults[str(folder.relative_to(tmp_path))] = found[:5]
    tell("accounting", f"{read} shared checkpoints accounted for, {refused} refused")
    assert faults == {}


def _checkpoints(root: Path) -> list[Path]:
    tracked = {path.parent for path in root.rglob("latest_checkpointed_iteration.txt")}
    named = {path for name in NAMES for path in root.rglob(name) if path.is_dir()}
    steps = {path.parent for path in root.rglob("step-*") if path.is_dir()}
    return sorted(tracked | named | steps)
