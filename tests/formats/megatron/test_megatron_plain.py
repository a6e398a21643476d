"""Megatron's plain distributed checkpoints (`fsdp_dtensor`, `torch_dcp`), and its old zarr backend.

Made by hand after the sources of the frameworks: no small machine can run them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import namespace, save
from test_megatron_errors import message

import reshard
from reshard.formats import recognize
from reshard.formats.megatron.read import read
from whole_tensors import arrange, wholes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dcp"))

from dcp_forge import Forge as Dcp
from dcp_forge import counted

NAME = "decoder.layers.0.mlp.linear_fc1.weight"
ROWS = [((0, 0), (3, 3)), ((3, 0), (2, 3))]
ARGS = {"num_layers": 1, "swiglu": True, "hidden_size": 3}


def fsdp(root: Path, *, numbered: bool = False) -> Path:
    """A folder of Megatron-FSDP over two ranks: rows cut unevenly."""
    folder = root / "iter_0000003"
    made = Dcp(folder)
    wrapped = "module.module.module."
    for half in "wv":
        made.tensor(f"model.module.{NAME}_{half}", counted(5, 3), ROWS)
        for state in ("exp_avg", "exp_avg_sq"):
            owner = "0" if numbered else f"{wrapped}{NAME}_{half}"
            if numbered and half == "v":
                continue
            made.tensor(
                f"optimizer.state.{owner}.{state}",
                counted(5, 3) + 100,
                ROWS,
            )
        made.object(f"optimizer.param_to_group_meta.{wrapped}{NAME}_{half}.lr", 0.5)
        made.object(f"optimizer.param_to_group_meta.{wrapped}{NAME}_{half}.wd_mult", 1.0)
    made.object("args", namespace(**ARGS))
    made.object("iteration", 3)
    made.object("checkpoint_version", 3.0)
    made.write()
    (root / "latest_checkpointed_iteration.txt").write_text("3")
    return root


def test_megatron_fsdp(tmp_path: Path) -> None:
    root = fsdp(tmp_path)
    assert recognize(root) == recognize(root / "iter_0000003") == "megatron"
    catalog = read(root)
    found = wholes(arrange(catalog))
    for half in "wv":
        assert np.array_equal(found[f"{NAME}_{half}", "param"], counted(5, 3))
        assert np.array_equal(found[f"{NAME}_{half}", "exp_avg_sq"], counted(5, 3) + 100)
    assert catalog.training.iteration == 3
    assert list(catalog.training.param_groups) == [
        {"lr": 0.5, "wd_mult": 1.0, "params": [f"{NAME}_w", f"{NAME}_v"]}
    ]
    assert catalog.config is not None
    assert catalog.config["args"]["num_layers"] == 1  # type: ignore[index]


def test_numbered_states(tmp_path: Path) -> None:
    root = fsdp(tmp_path / "run", numbered=True)
    assert message(root, root) == [
        "error[ambiguous-optimizer-ids]: `optimizer.state.0.exp_avg` in .../iter_0000003 belongs "
        "to a parameter that has a number, but no name",
        "  = note: `torch_dcp` saves the optimizer's `state_dict()`, which numbers parameters",
        "  = help: keep the weights with `--states weights`",
    ]
    reshard.convert(root, tmp_path / "out", "universal", states="weights")
    assert np.array_equal(reshard.open(tmp_path / "out").read(f"{NAME}_w"), counted(5, 3))


def zarr(root: Path, **changes: Any) -> Path:
    """A folder of the zarr backend: a weight of 2 by 2 chunks, at the edges shorter."""
    folder = root / "iter_0000003"
    value = np.arange(35, dtype=np.float32).reshape(5, 7)
    for key, shift in ((NAME, 0), (f"optimizer.state.exp_avg.{NAME}", 100)):
        array = folder / key
        array.mkdir(parents=True)
        described = {
            "zarr_format": 2,
            "shape": [5, 7],
            "chunks": [3, 4],
            "dtype": "<f4",
            "compressor": None,
            "filters": None,
            "fill_value": None,
            "order": "C",
            **changes,
        }
        (array / ".zarray").write_text(json.dumps(described))
        padded = np.zeros((6, 8), np.float32)
        padded[:5, :7] = value + shift
        for i in range(2):
            for j in range(2):
                chunk = padded[3 * i : 3 * i + 3, 4 * j : 4 * j + 4]
                (array / f"{i}.{j}").write_bytes(np.ascontiguousarray(chunk).tobytes())
    save(folder / "rng_state" / "shard_0.0_1.1.pt", [{"state": 7}])
    common = {"args": namespace(num_layers=1), "iteration": 3, "checkpoint_version": 3.0}
    groups = [{"wd_mult": 1.0, "params": [0], "step": 3}]
    save(folder / "common.pt", {**common, "optimizer": {"param_groups": groups}})
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    (root / "latest_checkpointed_iteration.txt").write_text("3")
    return root


def test_zarr(tmp_path: Path) -> None:
    catalog = read(zarr(tmp_path))
    found = wholes(arrange(catalog))
    value = np.arange(35, dtype=np.float32).reshape(5, 7)
    assert np.array_equal(found[NAME, "param"], value)
    assert np.array_equal(found[NAME, "exp_avg"], value + 100)
    assert float(found[NAME, "step"]) == 3.0
    assert catalog.training.framework is not None
    assert catalog.training.framework["objects"] == {"rng_state/shard_0.0_1.1": [{"state": 7}]}
    root = Path(catalog.root)
    there = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert {file.path for file in catalog.files} == there


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"compressor": {"id": "blosc"}}, "its chunks are compressed"),
        ({"order": "F"}, "it is not of zarr format 2 in order C"),
        ({"dtype": ">f4"}, "its element type is >f4"),
        ({"chunks": [3]}, "chunks [3] of shape [5, 7]"),
    ],
)
def test_zarr_that_is_not_read(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    assert message(zarr(tmp_path, **changes), tmp_path) == [
        f"error[bad-zarr]: the array .../iter_0000003/{NAME} is not read",
        f"  = note: {why}",
        "  = help: load it with the Megatron that wrote it, and save it as `torch_dist`",
    ]


def test_zarr_without_a_chunk(tmp_path: Path) -> None:
    zarr(tmp_path)
    (tmp_path / "iter_0000003" / NAME / "1.0").unlink()
    assert message(tmp_path, tmp_path) == [
        f"error[missing-chunk]: a chunk of `{NAME}` is not stored",
        f"  = note: .../iter_0000003/{NAME}/1.0 is missing",
        "  = note: of shape [5, 7]",
        "  = help: the checkpoint is damaged; go back to an earlier one",
    ]


def test_a_short_chunk_of_zarr(tmp_path: Path) -> None:
    zarr(tmp_path)
    (tmp_path / "iter_0000003" / NAME / "1.0").write_bytes(b"1234")
    assert message(tmp_path, tmp_path) == [
        f"error[truncated]: .../iter_0000003/{NAME}/1.0 has 4 bytes, and a chunk of it 48",
        "  = help: the file was not written or copied completely; copy it again",
    ]


def test_another_backend(tmp_path: Path) -> None:
    zarr(tmp_path)
    (tmp_path / "iter_0000003" / "metadata.json").write_text('{"sharded_backend": "other"}')
    assert message(tmp_path, tmp_path) == [
        "error[unsupported-backend]: .../iter_0000003 is stored by backend `other`",
        "  = note: `torch_dist` and `zarr` are read",
        "  = help: convert it with the Megatron that wrote it",
    ]
