"""The folder that DeepSpeed loads as a universal checkpoint: every file of it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deepspeed_forge import Run
from deepspeed_targets import arranged, array, bits, converted, held, prepared, tree

import reshard
from reshard.algebra.piece import row_major
from reshard.formats.deepspeed.write_universal import tensor_keys
from reshard.storage.inert import Record
from safetensors_files import save

Open = Callable[[str], Path]

CASES = [
    "z0_bf16_dp2",
    "z1_bf16_dp4_tied",
    "z1_bf16opt_dp2_untied",
    "z1_fp32_dp2_frozen",
    "z1_fp32_dp4_rr",
    "z2_bf16_dp2_align",
    "z2_fp32_dp2_elastic",
    "z3_bf16_dp2_subgroups",
    "z3_fp32_dp2_frozen",
    "pipe_pp2_dp2_z1_fp32_tied",
    "toytp_tp2_dp2_z1_fp32",
    "autotp_tp2_dp2_z3_bf16",
    "autoep_ep2_dp2_z1_bf16",
]


def folder_of(target: Path) -> Path:
    """The folder of the step."""
    return target / (target / "latest_universal").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_its_files(case: str, fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint(case) / "ckpt"
    folder = folder_of(converted(source, tmp_path / "new", "deepspeed-universal"))
    wanted = held(source)
    module = tree(folder / "mp_rank_00_model_states.pt")["module"]
    seen = set()
    for (name, state), values in wanted.items():
        if state == "step":
            assert array(tree(folder / "zero" / name / "step.pt")).tobytes() == values.tobytes()
            continue
        if (name, "exp_avg") not in wanted:
            assert array(module[name]).tobytes() == bits(values).tobytes()
            continue
        file = state
        if state == "master" or (state == "param" and (name, "master") not in wanted):
            file = "fp32"
        elif state == "param":
            continue
        seen.add(f"{name}/{file}.pt")
        found = tree(folder / "zero" / name / f"{file}.pt")["param"]
        assert found.shape == values.shape
        assert found.strides == row_major(values.shape)
        assert array(found).tobytes() == bits(values).tobytes()
    names = {name for name, _ in wanted if (name, "exp_avg") in wanted}
    assert {path.name for path in (folder / "zero").iterdir()} == {*names, "optimizer_state.pt"}
    files = {f"{path.parent.name}/{path.name}" for path in (folder / "zero").glob("*/*.pt")}
    assert files == seen | {f"{name}/step.pt" for name in names}


def test_what_the_loader_wants_is_there(fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    target = converted(source, tmp_path / "new", "deepspeed-universal")
    assert (target / "latest_universal").read_text() == "global_step3_universal"
    folder = folder_of(target)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        model = tree(folder / name)
        assert model["dp_world_size"] == 4
        assert model["mp_world_size"] == 1  # as many as there are files of its kind
        assert model["global_steps"] == 3
        assert model["global_samples"] == 36
        assert model["skipped_steps"] == 0
        assert model["lr_scheduler"] is None
        assert model["my_iteration"] == 3  # of the training script
        assert model["args"] == {"note": "client_state"}
    state = tree(folder / "zero" / "optimizer_state.pt")
    assert state["ds_version"] == "0.19.8"
    assert state["clip_grad"] == 1.0
    assert "loss_scaler" not in state  # of a run in bf16: one of fp16 keeps its own
    groups = [
        {key: group[key] for key in ("lr", "weight_decay")} for group in state["param_groups"]
    ]
    assert groups == [{"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.01, "weight_decay": 0.0}]
    assert all(group["betas"] == (0.9, 0.95) for group in state["param_groups"])
    inner = state["optimizer_state_dict"]
    assert array(inner["state"][0]["step"]).view("<f4").item() == 3.0
    (common,) = inner["param_groups"]
    assert common["lr"] == 0.01
    assert "weight_decay" not in common  # the loader of stage 3 would give it to all groups


def test_the_same_source_gives_the_same_bytes(fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint("z3_fp32_dp2_untied") / "ckpt"
    first = converted(source, tmp_path / "first", "deepspeed-universal", threads=1)
    second = converted(source, tmp_path / "second", "deepspeed-universal", threads=2)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 89  # the list of them included
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_a_step_that_is_a_number_stays_one(tmp_path: Path) -> None:
    source = Run(tmp_path / "run", [{"w": (3, 4)}], step=7).write()
    folder = folder_of(converted(source, tmp_path / "new", "deepspeed-universal:tag=here"))
    assert folder.name == "here"
    assert tree(folder / "zero" / "w" / "step.pt") == 7
    state = tree(folder / "zero" / "optimizer_state.pt")
    assert state["optimizer_state_dict"]["state"] == {0: {"step": 7}}


def test_experts_of_all_ranks_lie_in_one_file(fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint("moe_ep2_dp4_z1_bf16") / "ckpt"
    wanted = held(source)
    folder = folder_of(converted(source, tmp_path / "two", "deepspeed-universal"))
    stem = "moe1.deepspeed_moe.experts.deepspeed_experts"
    for local in range(2):
        entry = tree(folder / "zero" / f"{stem}.{local}.a.weight" / "fp32.pt")
        experts = [wanted[f"{stem}.{2 * rank + local}.a.weight", "master"] for rank in range(2)]
        assert array(entry["param"]).tobytes() == bits(np.concatenate(experts)).tobytes()
        assert entry["is_expert_param"] is True
        # The loader gives each of two ranks half of the rows: one expert.
        assert entry["ep_num_experts"] == 2 * experts[0].shape[0] == entry["param"].shape[0]
    assert not (folder / "zero" / f"{stem}.2.a.weight").exists()
    folder = folder_of(converted(source, tmp_path / "one", "deepspeed-universal:ep=1"))
    entry = tree(folder / "zero" / f"{stem}.3.b.bias" / "exp_avg.pt")
    assert set(entry) == {"param"}
    assert array(entry["param"]).tobytes() == wanted[f"{stem}.3.b.bias", "exp_avg"].tobytes()


# How the loader cuts a tensor, compared with how the source was cut.


def _loaded(entry: Mapping[str, Any], full: np.ndarray, tp: int, shape: tuple[int, ...]) -> list:
    """The shards that DeepSpeed's loader makes of a whole tensor.

    After the rules of `load_hp_checkpoint_state` in checkpoint/universal_checkpoint.py.
    """
    if full.shape == shape:
        return [full] * tp
    if entry.get("vocab_tensor"):
        full = np.pad(full, ((0, shape[0] * tp - full.shape[0]), (0, 0)))
    dim = entry.get("cat_dim", 0)
    sub = entry.get("sub_param_shape")
    if sub is not None:
        dim = sub.attributes["partition_dim"]
        sizes = sub.attributes["shape"][dim]
        view = [sum(s) if isinstance(s, tuple) else s for s in sub.attributes["shape"]]
        parts = np.split(full.reshape(view), np.cumsum(sizes)[:-1], axis=dim)
    else:
        parts = np.split(full, entry.get("param_n_sub_params", 1), axis=dim)
    cut = [np.split(part, tp, axis=dim) for part in parts]
    return [np.concatenate([own[rank] for own in cut], axis=dim) for rank in range(tp)]


def _shards(source: Path) -> dict[str, list[np.ndarray]]:
    """The weights of both tensor-parallel ranks as their files have them."""
    out: dict[str, list[np.ndarray]] = {}
    for rank in range(2):
        model = tree(source / "global_step3" / f"mp_rank_{rank:02d}_model_states.pt")
        for name, ref in model["module"].items():
            raw = Path(ref.file).read_bytes()
            flat = np.frombuffer(raw, "<f4", ref.numel, ref.byte_offset)
            out.setdefault(name, []).append(flat.reshape(ref.shape))
    return out


def test_tensors_are_cut_again_as_they_were(fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt"
    folder = folder_of(converted(source, tmp_path / "new", "deepspeed-universal"))
    keys = set()
    for name, shards in _shards(source).items():
        entry = tree(folder / "zero" / name / "fp32.pt")
        keys |= set(entry) - {"param"}
        full = array(entry["param"]).view("<f4")
        for rank, made in enumerate(_loaded(entry, full, 2, shards[0].shape)):
            wanted = shards[rank]
            if entry.get("vocab_tensor"):
                rows = max(0, min(len(wanted), len(full) - rank * len(wanted)))
                made, wanted = made.reshape(shards[0].shape)[:rows], wanted[:rows]
            assert made.reshape(wanted.shape).tobytes() == wanted.tobytes(), name
    assert keys == {"cat_dim", "vocab_tensor", "param_n_sub_params", "sub_param_shape"}


@pytest.mark.parametrize(
    ("rule", "shape", "keys"),
    [
        ("[rows over tp, cols]", (4, 6), {"cat_dim": 0}),
        ("[rows, cols over tp]", (4, 6), {"cat_dim": 1}),
        ("[rows, cols]", (4, 6), {}),
        ("[(a over tp + b over tp), cols]", (8, 3), {"cat_dim": 0, "param_n_sub_params": 2}),
        (
            "[(a:4 over tp + b:2 over tp), cols]",
            (3, 3),
            {"sub_param_shape": ((4, 2), 3), "partition_dim": 0},
        ),
        (
            "[n:3 rows over tp, cols]",
            (6, 5),
            {"sub_param_shape": (3, (4,), 5), "partition_dim": 1},
        ),
    ],
)
def test_the_keys_of_a_cut(
    rule: str, shape: tuple[int, ...], keys: dict[str, object], tmp_path: Path
) -> None:
    arrangement = _two_ranks(tmp_path, rule, shape)
    found = tensor_keys(arrangement, arrangement.bound["w"])
    record = found.get("sub_param_shape")
    if isinstance(record, Record):
        assert str(record) == "deepspeed.checkpoint.universal_checkpoint.SubparamShape"
        shown = record.attributes
        found = {"sub_param_shape": shown["shape"], "partition_dim": shown["partition_dim"]}
    assert found == keys


def _two_ranks(path: Path, rule: str, shape: tuple[int, ...]) -> Any:
    from deepspeed_oracle import arrange

    from reshard.formats.deepspeed.read import read

    groups = {rank: [{"w": shape}] for rank in (0, 1)}
    copies = {}
    if "over" not in rule:
        numel = int(np.prod(shape))
        copies = {rank: {"w": [float(i) for i in range(numel)]} for rank in (0, 1)}
    source = Run(path / "run", groups, dp=1, tp=2, values=copies).write()
    catalog = read(source, strict_layout=False)
    return arrange(catalog, f'layout l {{\n    mesh tp\n    "w" = {rule}\n}}\n')


def test_every_tensor_is_placed_or_named(fixture_checkpoint: Open) -> None:
    output = prepared(
        arranged(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"), "deepspeed-universal"
    )
    assert {(state, why) for _, state, why in output.dropped} == {
        ("param", "DeepSpeed makes it of the master weights when it loads")
    }
    assert len(output.dropped) == 20
    assert output.folded == ()


def test_tensors_that_no_optimizer_trains_get_no_master_weights(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    tensors = {
        "w": ("F32", [2], struct.pack("<2f", 1, 2)),
        "mask": ("BOOL", [3], b"\1\0\1"),
        "ids": ("I64", [1], struct.pack("<q", (1 << 60) + 1)),
    }
    save(source / "model.safetensors", tensors)
    found = reshard.open(converted(source, tmp_path / "new", "deepspeed-universal"))
    assert found.read("w", "master").tolist() == [1.0, 2.0]
    assert found.read("mask", "param").tolist() == [True, False, True]
    assert found.read("ids", "param").tolist() == [(1 << 60) + 1]
