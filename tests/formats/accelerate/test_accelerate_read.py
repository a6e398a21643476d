"""What is read of accelerate's `.bin` files, whole or of every rank, and what is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from reshard.dtypes import DType
from reshard.errors import Exit, ReshardError
from reshard.formats import recognize
from reshard.storage.inert import Global, Record, Size
from reshard.storage.torch_writer import NewStorage, NewTensor
from torch_files import save

Fixture = Callable[[str], Path]
CASES = ("accelerate_dp2_tp2", "accelerate_hsdp2x2")
FLAT = "torch.distributed._mesh_layout"
PLACED = "torch.distributed.tensor.placement_types"


def truth(case: Path) -> dict[tuple[str, str], bytes]:
    data = (case / "truth.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    out = {}
    for key, item in header.items():
        state, _, name = key.partition("/")
        start, stop = item["data_offsets"]
        out[name, state] = data[8 + size + start : 8 + size + stop]
    return out


def held(folder: Path | str) -> dict[tuple[str, str], bytes]:
    checkpoint = reshard.open(folder)
    return {
        (name, state): checkpoint.read(name, state).tobytes()
        for name, info in checkpoint.tensors.items()
        for state in info.dtypes
    }


@pytest.mark.parametrize("name", CASES)
def test_every_state_is_put_together(name: str, fixture_checkpoint: Fixture) -> None:
    case = fixture_checkpoint(name)
    assert recognize(case / "ckpt") == "described"
    assert held(case / "ckpt") == truth(case)
    training = reshard.open(case / "ckpt").training
    assert [group["lr"] for group in training.param_groups] == [1e-2]
    assert training.param_groups[0]["params"] == [
        "norm.weight",
        "norm.bias",
        "up.weight",
        "up.bias",
        "down.weight",
        "down.bias",
    ]


class Forge:
    """Rank files made by hand; tensors are filled with the index of each element."""

    def __init__(self) -> None:
        self.data: dict[NewStorage, bytes] = {}

    def tensor(self, value: np.ndarray) -> NewTensor:
        kinds = {"float32": DType.F32, "int32": DType.I32, "int64": DType.I64}
        storage = NewStorage(kinds[str(value.dtype)], value.size)
        self.data[storage] = value.tobytes()
        strides = tuple(step // value.itemsize for step in value.strides)
        return NewTensor(storage, 0, value.shape, strides)

    def mesh(
        self, sizes: Sequence[int], *, old: bool = False, place: tuple[int, ...] = ()
    ) -> Record:
        ranks = np.arange(np.prod(sizes)).reshape(sizes)
        if old:
            state: dict[object, object] = {"mesh": self.tensor(ranks.astype(np.int64))}
        else:
            steps = [int(np.prod(sizes[axis + 1 :])) for axis in range(len(sizes))]
            axes = tuple(
                Record(FLAT, "_FlatLayout", (), "newobj", [{"shape": (n,), "stride": (step,)}])
                for n, step in zip(sizes, steps, strict=True)
            )
            layout = Record(FLAT, "_MeshLayout", (), "newobj", [{"axes": axes}])
            state = {"_layout": layout, "_rank_map": self.tensor(ranks.ravel().astype(np.int32))}
        if place:
            state["_coordinate_on_dim"] = place
        return Record("torch.distributed.device_mesh", "DeviceMesh", (), "newobj", [state])

    def dtensor(
        self, local: np.ndarray, shape: Sequence[int], mesh: Record, *placements: object
    ) -> Record:
        meta = Record(
            "torch.distributed.tensor._dtensor_spec", "TensorMeta", (Size(shape),), "newobj"
        )
        fields = {"mesh": mesh, "placements": tuple(placements), "tensor_meta": meta}
        spec = Record(
            "torch.distributed.tensor._dtensor_spec", "DTensorSpec", (), "newobj", [fields]
        )
        kind = Global("torch.distributed.tensor", "DTensor")
        state = (None, {"_local_tensor": self.tensor(local), "_spec": spec})
        args = (Global("torch._utils", "_rebuild_wrapper_subclass"), kind, (), state)
        return Record("torch._tensor", "_rebuild_from_type_v2", args)

    def save(self, name: str, root: object) -> None:
        Path("ckpt").mkdir(exist_ok=True)
        save(Path("ckpt", name), root, self.data)


def placed(kind: str, dim: int | None = None) -> Record:
    state = [] if dim is None else [{"dim": dim}]
    return Record(PLACED, kind, (), "newobj", state)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(rank: int) -> str:
    return f"pytorch_model_fsdp_0_rank{rank}.bin"


@pytest.mark.parametrize("old", [False, True])
def test_rows_that_ranks_do_not_share_evenly(old: bool) -> None:
    whole = np.arange(10, dtype=np.float32).reshape(5, 2)
    for rank in range(4):
        forge = Forge()
        local = whole[2 * rank : 2 * rank + 2].copy()  # 2, 2, 1, and none
        mesh = forge.mesh([4], old=old)
        forge.save(model(rank), {"w": forge.dtensor(local, (5, 2), mesh, placed("Shard", 0))})
    assert held("ckpt") == {("w", "param"): whole.tobytes()}


def test_columns_within_rows_and_copies() -> None:
    whole = np.arange(12, dtype=np.float32).reshape(2, 6)
    for rank in range(8):
        forge = Forge()
        copy, row, column = rank // 4, rank // 2 % 2, rank % 2
        del copy
        local = whole[row : row + 1, 3 * column : 3 * column + 3].copy()
        cuts = (placed("Replicate"), placed("Shard", 0), placed("Shard", 1))
        forge.save(model(rank), {"w": forge.dtensor(local, (2, 6), forge.mesh([2, 2, 2]), *cuts)})
    assert reshard.open("ckpt").mesh == {"rank": 8, "copy": 2}
    assert held("ckpt") == {("w", "param"): whole.tobytes()}


def test_a_cut_within_that_of_a_later_axis() -> None:
    """Tensor parallelism cuts first, and FSDP the rows of each rank: 0-1, 4-5, 2, 6."""
    whole = np.arange(7, dtype=np.float32)
    rows = {(0, 0): (0, 2), (0, 1): (4, 6), (1, 0): (2, 4), (1, 1): (6, 7)}
    for (dp, tp), (start, stop) in rows.items():
        forge = Forge()
        cuts = (placed("_StridedShard", 0), placed("Shard", 0))
        value = forge.dtensor(whole[start:stop].copy(), (7,), forge.mesh([2, 2]), *cuts)
        forge.save(model(2 * dp + tp), {"w": value})
    assert held("ckpt") == {("w", "param"): whole.tobytes()}


def test_whole_state_dicts() -> None:
    forge = Forge()
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    forge.save("pytorch_model_fsdp.bin", {"w": forge.tensor(weight)})
    states = Forge()
    step = np.array(4, np.float32)
    state = {"w": {"step": states.tensor(step), "exp_avg": states.tensor(weight + 1)}}
    groups = [{"lr": 0.5, "params": ["w"]}]
    states.save("optimizer.bin", {"state": state, "param_groups": groups})
    Path("ckpt/scheduler.bin").write_bytes(b"")
    assert held("ckpt") == {
        ("w", "param"): weight.tobytes(),
        ("w", "step"): step.tobytes(),
        ("w", "exp_avg"): (weight + 1).tobytes(),
    }
    found = reshard.inspect("ckpt")
    assert (found.left, found.side_files) == ((), ("scheduler.bin",))
    reshard.convert("ckpt", "out", "hf", names="source")
    assert sorted(path.name for path in Path("out").glob("[!.]*")) == ["model.safetensors"]


def refused(**options: Any) -> str:
    with pytest.raises(ReshardError) as caught:
        reshard.open("ckpt", **options)
    assert caught.value.exit_code == Exit.SOURCE
    return str(caught.value)


def bad(name: str, why: str, fix: str = "") -> str:
    fix = fix or "the folder mixes two checkpoints, or is damaged; copy it again"
    return (
        f"error[bad-shard]: {name} is not a shard of a distributed checkpoint\n"
        " --> accelerate_ranks.ucl:5:9\n"
        "  |\n"
        '5 |         state param at "{name}"\n'
        "  |         ^^^^^^^^^^^^^^^^^^^^^^^ read here\n"
        "  |\n"
        f"  = note: {why}\n"
        f"  = help: {fix}"
    )


def test_a_rank_that_is_missing(fixture_checkpoint: Fixture) -> None:
    shutil.copytree(fixture_checkpoint(CASES[0]) / "ckpt", "ckpt")
    for name in (model(3), model(1)):
        Path("ckpt", name).unlink()
    names = "pytorch_model_fsdp_0_rank1.bin, pytorch_model_fsdp_0_rank3.bin"
    assert refused().startswith(f"error[missing-rank-file]: 2 of 4 files are missing: {names}\n")


def test_ranks_at_the_end_that_are_missing(fixture_checkpoint: Fixture) -> None:
    """No file says that there were more; the tensors do."""
    shutil.copytree(fixture_checkpoint(CASES[0]) / "ckpt", "ckpt")
    for rank in (2, 3):
        Path("ckpt", model(rank)).unlink()
        Path(f"ckpt/optimizer_0_rank{rank}.bin").unlink()
    assert refused() == (
        "error[missing-rank-file]: 2 of the files of 4 ranks are missing\n"
        "  = note: those of rank 2, 3, as `norm.weight` in pytorch_model_fsdp_0_rank0.bin says of "
        "its mesh\n"
        "  = help: copy the files of all ranks into one folder"
    )


def test_ranks_of_two_saves(fixture_checkpoint: Fixture) -> None:
    shutil.copytree(fixture_checkpoint(CASES[0]) / "ckpt", "ckpt")
    shutil.copy(Path("ckpt", model(0)), Path("ckpt", model(1)))
    where = f"`norm.weight` in {model(1)}"
    assert refused() == bad(model(1), f"{where}: it was written by rank 0")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda forge: forge.dtensor(
                np.zeros(2, np.float32), (4,), forge.mesh([2]), placed("Partial")
            ),
            "it is placed as `Partial`",
        ),
        (
            lambda forge: forge.dtensor(
                np.zeros(3, np.float32), (4,), forge.mesh([2]), placed("Shard", 0)
            ),
            "it has [3] elements, its rank [2]",
        ),
        (
            lambda forge: forge.dtensor(
                np.zeros(2, np.float32), (4,), forge.mesh([2], place=(1,)), placed("Shard", 0)
            ),
            "it was written at [1] of its mesh, and rank 0 is [0]",
        ),
        (
            lambda forge: forge.dtensor(np.zeros(4, np.float32), (4,), forge.mesh([2])),
            "its placements are not those of its mesh",
        ),
        (
            lambda forge: forge.dtensor(
                np.zeros(1, np.float32),
                (4,),
                forge.mesh([2, 2]),
                placed("_StridedShard", 0),
                placed("_StridedShard", 0),
            ),
            "two axes of its mesh cut a dimension in strides",
        ),
        (
            lambda forge: forge.dtensor(
                np.zeros(4, np.float32),
                (4,),
                Record("torch.distributed.device_mesh", "DeviceMesh", ()),
                placed("Replicate"),
            ),
            "it does not say the ranks of its mesh",
        ),
    ],
)
def test_tensors_that_are_not_read(make: Callable[[Forge], object], why: str) -> None:
    forge = Forge()
    forge.save(model(0), {"w": make(forge)})
    assert refused() == bad(model(0), f"`w` in {model(0)}: {why}")


def test_what_else_is_refused() -> None:
    forge = Forge()
    flat = {"_fsdp_wrapped_module._flat_param": forge.tensor(np.zeros(3, np.float32))}
    forge.save(model(0), flat)
    assert refused() == bad(
        model(0),
        "`_fsdp_wrapped_module._flat_param` is a flat buffer of FSDP; only the run itself can take "
        "it apart",
        "save with `SHARDED_STATE_DICT` or `FULL_STATE_DICT`",
    )
    forge.save(model(0), {"w": forge.tensor(np.zeros(3, np.float32))})
    forge.save("optimizer_0_rank0.bin", {"state": {}})
    assert refused().startswith(
        "error[missing-place]: nothing lies at `param_groups` in optimizer_0_rank0.bin\n"
    )
    assert refused(step="3") == (
        "error[unknown-step]: ckpt has no step `3`\n"
        "  = note: a layout describes the files of one step\n"
        "  = help: give the folder of the step, and leave `--step` out"
    )


def test_states_of_numbers() -> None:
    """They have names where the groups list the numbers; else the weights alone are read."""
    forge, states = Forge(), Forge()
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    forge.save("pytorch_model_fsdp.bin", {"w": forge.tensor(weight)})
    state = {0: {"exp_avg": states.tensor(weight)}}
    states.save("optimizer.bin", {"state": state, "param_groups": [{"lr": 0.5, "params": [0]}]})
    assert held("ckpt")["w", "exp_avg"] == weight.tobytes()
    states.save("optimizer.bin", {"state": state, "param_groups": [{"lr": 0.5, "params": []}]})
    [oddity] = reshard.inspect("ckpt").oddities
    assert oddity.render() == (
        "warning[ambiguous-optimizer-ids]: no group lists parameter number 0\n"
        "  = note: its state is `state/0/exp_avg` in optimizer.bin\n"
        "  = help: say in a layout in which order the module registers its parameters: `order "
        '"embed", "layers.{i}.attn", ...`\n'
        "  = help: or leave the states out with `--states weights`"
    )
    with pytest.raises(ReshardError, match="ambiguous-optimizer-ids"):
        reshard.convert("ckpt", "out", "universal")
    reshard.convert("ckpt", "out", "universal", states="weights")
    assert reshard.open("out").states == ("param",)


def test_entries_that_nobody_knows_are_listed_and_param_groups_are_alike_on_every_rank() -> None:
    forge = Forge()
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    for rank in (0, 1):
        forge.save(f"pytorch_model_fsdp_0_rank{rank}.bin", {"w": forge.tensor(weight)})
        root = {"state": {}, "param_groups": [{"lr": 0.5, "nobody_knows": 1}], "nobody_knows": 2}
        forge.save(f"optimizer_0_rank{rank}.bin", root)
    found = reshard.inspect("ckpt")
    assert [(item.file, item.key) for item in found.left] == [
        (f"optimizer_0_rank{rank}.bin", "nobody_knows") for rank in (0, 1)
    ]
    assert found.training.param_groups == ({"lr": 0.5, "nobody_knows": 1},)
    forge.save("optimizer_0_rank1.bin", {"state": {}, "param_groups": [{"lr": 0.25}]})
    assert refused() == (
        "error[ranks-disagree]: files disagree about `param_groups`\n"
        "  --> accelerate_ranks.ucl:10:9\n"
        "   |\n"
        '10 |         run param_groups = "param_groups"\n'
        "   |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ read here\n"
        "   |\n"
        "  = note: one is at `param_groups` in optimizer_0_rank0.bin\n"
        "  = note: the other at `param_groups` in optimizer_0_rank1.bin\n"
        "  = help: the files may be of different runs or steps; copy those of one"
    )
