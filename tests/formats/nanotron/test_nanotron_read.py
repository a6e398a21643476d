"""What is read of nanotron's checkpoints, and what is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from reshard.algebra.box import Box
from reshard.errors import Exit, ReshardError
from reshard.formats import recognize
from reshard.formats.nanotron.read import read
from reshard.formats.nanotron.slices import SlicesError, parse_pairs, parse_shape, show_pairs

Fixture = Callable[[str], Path]
CASES = ("nanotron_tp2_pp2_dp2_z1", "nanotron_tp2_pp3_dp5_z1_tied", "nanotron_tp1_z0")
OWN = "nanotron_pp2_z0_lr"
MODEL = "model/model/decoder/0/pp_block"


def truth(case: Path) -> dict[tuple[str, str], bytes]:
    """Every state of every parameter, whole, by name and state."""
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


def held(folder: Path, names: str | None = None) -> dict[tuple[str, str], bytes]:
    """The same, as the library reads it."""
    checkpoint = reshard.open(folder, names=names) if names else reshard.open(folder)
    return {
        (name, state): checkpoint.read(name, state).tobytes()
        for name, info in checkpoint.tensors.items()
        for state in info.dtypes
    }


@pytest.mark.parametrize("name", CASES)
def test_every_state_is_put_together(name: str, fixture_checkpoint: Fixture) -> None:
    case = fixture_checkpoint(name)
    assert recognize(case / "ckpt") == "nanotron"
    assert held(case / "ckpt") == truth(case)
    assert held(case / "ckpt" / "7") == truth(case)


def test_what_nanotron_itself_saved_is_put_together(fixture_checkpoint: Fixture) -> None:
    case = fixture_checkpoint(OWN)
    assert held(case / "ckpt") == truth(case)
    training = reshard.open(case / "ckpt").training
    groups = [(group["initial_lr"], group["weight_decay"]) for group in training.param_groups]
    assert groups == [(0.01, 0.1), (0.003, 0.0)]
    assert [len(group["params"]) for group in training.param_groups] == [14, 7]  # type: ignore[arg-type]
    assert training.state is not None
    scheduler = training.state["lr_scheduler"]
    assert isinstance(scheduler, dict)
    assert (scheduler["base_lrs"], scheduler["last_epoch"]) == ([0.01, 0.003], 3)


def test_settings_that_differ_between_ranks_are_refused(ckpt: Path) -> None:
    """A byte of the learning rate that one tensor-parallel rank has."""
    path = ckpt / "optimizer/optimizer_pp-0-of-2_dp-0-of-2_tp-1-of-2_exp-0-of-1.pt"
    data = path.read_bytes()
    rate = struct.pack(">d", 1e-3)
    assert data.count(rate) >= 1
    path.write_bytes(data.replace(rate, struct.pack(">d", 2e-3)))
    assert refused().startswith(
        "error[mixed-runs]: the param groups of a stage differ between ranks\n"
        "  = note: `[0].lr` is 0.001 in optimizer/optimizer_pp-0-of-2_dp-0-of-2_tp-0-of-2_"
        "exp-0-of-1.pt, and 0.002 in optimizer/optimizer_pp-0-of-2_dp-0-of-2_tp-1-of-2_"
        "exp-0-of-1.pt\n"
    )


@pytest.mark.parametrize("data", [b"\xff\xfe", b"", b"seven", b"\0" * 3_000_000])
def test_a_tracker_that_names_no_step(data: bytes, ckpt: Path) -> None:
    (ckpt.parent / "latest.txt").write_bytes(data)
    assert refused() == (
        "error[bad-tracker]: ckpt/latest.txt does not name a step\n"
        "  = note: nanotron writes the number of the last step into it, and nothing else\n"
        "  = help: choose a step with `--step`, or write its number into the file"
    )


def test_what_is_known_besides(fixture_checkpoint: Fixture) -> None:
    catalog = read(fixture_checkpoint(CASES[0]) / "ckpt")
    assert catalog.version == "1.5"
    training = catalog.training
    assert training.iteration == 7
    assert training.state == {"lr_scheduler": {"last_epoch": 7, "base_lrs": [1e-3, 1e-3]}}
    assert [group["weight_decay"] for group in training.param_groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in training.param_groups] == [14, 7]  # type: ignore[arg-type]
    assert training.framework is not None
    assert training.framework["metadata"]["metas"]["consumed_train_samples"] == 84  # type: ignore[index]
    assert len(training.framework["objects"]) == 16  # type: ignore[arg-type]
    assert catalog.config is not None
    assert catalog.config["rope_interleaved"] is False


def test_names_of_other_layouts(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    """The rows of a fused tensor are where transformers wants them."""
    case = fixture_checkpoint(CASES[0])
    whole = truth(case)
    reshard.convert(case / "ckpt", tmp_path / "hf", "universal", names="hf")
    found = held(tmp_path / "hf")
    name = "model.decoder.1.pp_block.attn.qkv_proj.weight"
    for state in ("param", "exp_avg"):
        rows = b"".join(
            found[f"model.layers.1.self_attn.{part}_proj.weight", state] for part in "qkv"
        )
        assert rows == whole[name, state]
    config = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert (config["head_dim"], config["rms_norm_eps"]) == (4, 1e-6)


def test_slices_as_nanotron_writes_them() -> None:
    text = (
        "0,32,None|None,None,None#32,64,None|None,None,None;"
        "32,40,None|None,None,None#72,80,None|None,None,None"
    )
    first, second = parse_pairs(text, (40, 3), (96, 3))
    assert (first.box, first.offset, first.strides) == (Box((32, 0), (32, 3)), 0, (3, 1))
    assert (second.box, second.offset) == (Box((72, 0), (8, 3)), 96)
    boxes = [(Box((0, 0), (32, 3)), first.box), (Box((32, 0), (8, 3)), second.box)]
    assert show_pairs(boxes, (40, 3), (96, 3)) == text
    assert parse_shape("(np.int64(96), 3)") == (96, 3)
    assert parse_shape("(5,)") == (5,)
    assert parse_shape("()") == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "`` is no pair of slices"),
        ("0,2,None", "`0,2,None` is no pair of slices"),
        ("0,2,None#0,2,2", "`0,2,2` is no slice that can be read"),
        ("0,2,None#-2,2,None", "`-2,2,None` is no slice that can be read"),
        ("0,5,None#0,5,None", "`0,5,None` is not within 4"),
        ("0,2,None#0,3,None", "`0,2,None#0,3,None` pairs [2] with [3] elements"),
        ("0,2,None|0,1,None#0,2,None", "`0,2,None|0,1,None` has 2 dimensions, the tensor 1"),
    ],
)
def test_slices_that_say_nothing(text: str, why: str) -> None:
    with pytest.raises(SlicesError) as caught:
        parse_pairs(text, (4,), (8,))
    assert str(caught.value) == why


@pytest.mark.parametrize("text", ["", "(1;2)", "(-1,)", "(" + "1" * 60 + "x)", "(a)"])
def test_a_shape_that_is_none(text: str) -> None:
    with pytest.raises(SlicesError):
        parse_shape(text)


@pytest.fixture
def ckpt(fixture_checkpoint: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, called `ckpt` from here."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fixture_checkpoint(CASES[0]) / "ckpt", "ckpt")
    return Path("ckpt/7")


def refused(folder: str = "ckpt", **options: Any) -> str:
    with pytest.raises(ReshardError) as caught:
        read(Path(folder), **options)
    assert caught.value.exit_code == Exit.SOURCE
    return str(caught.value)


def spoil(path: Path, metadata: Mapping[str, str] | None, tensors: list[str] | None = None) -> None:
    """Write a shard anew, with other metadata or other tensors."""
    value = np.zeros(2, np.float32).tobytes()
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for index, name in enumerate(tensors or ["data"]):
        at = [8 * index, 8 * index + 8]
        header[name] = {"dtype": "F32", "shape": [2], "data_offsets": at}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + value * len(tensors or [1]))


def bad_shard(path: str, why: str) -> str:
    return (
        f"error[bad-shard]: {path} is not a shard of a distributed checkpoint\n"
        f"  = note: {why}\n"
        "  = help: the folder mixes two checkpoints, or is damaged; copy it again"
    )


def test_shards_that_are_none(ckpt: Path) -> None:
    norm = ckpt / MODEL / "input_layernorm/model_weight.safetensors"
    spoil(norm, {"version": "1.5"})
    why = "its metadata says that it is a shard, its name that it is whole"
    assert refused() == bad_shard(str(norm), why)
    spoil(norm, None, ["data", "more"])
    assert refused() == bad_shard(str(norm), "it holds 'data', 'more', not `data` alone")
    norm.rename(norm.with_name("weights.safetensors"))
    assert refused() == bad_shard(
        str(norm.with_name("weights.safetensors")),
        "its name is not `model_PARAMETER[_pp-rank-...].safetensors`",
    )


def test_a_shard_with_other_slices(ckpt: Path) -> None:
    path = ckpt / MODEL / "mlp/down_proj/model_weight_pp-rank-0-of-2_tp-rank-1-of-2.safetensors"
    spoil(path, {"unsharded_shape": "(4,)", "local_global_slices_pairs": "0,2,None#3,5,None"})
    assert refused() == bad_shard(str(path), "`3,5,None` is not within 4")
    spoil(path, {"unsharded_shape": "four"})
    assert refused() == bad_shard(str(path), "`four` is no shape")
    spoil(path, {"unsharded_shape": "(4,)", "local_global_slices_pairs": "0,2,None#2,4,None"})
    first = "7/model/model/decoder/0/pp_block/mlp/down_proj/model_weight"
    told = f"it is of BF16 [16, 18] in `{first[2:]}_pp-rank-0-of-2_tp-rank-0-of-2.safetensors`"
    name = "model.decoder.0.pp_block.mlp.down_proj.weight"
    assert refused() == bad_shard(str(path), f"`{name}` is of F32 [4]; {told}")


def test_a_shard_that_is_missing(ckpt: Path) -> None:
    path = ckpt / MODEL / "mlp/down_proj/model_weight_pp-rank-0-of-2_tp-rank-1-of-2.safetensors"
    path.unlink()
    shutil.rmtree(ckpt / "optimizer")
    with pytest.raises(ReshardError) as caught:
        reshard.open("ckpt")
    assert [item.code for item in caught.value.diagnostics] == ["coverage-gap"]


def test_an_optimizer_file_that_is_missing(ckpt: Path) -> None:
    (ckpt / "optimizer/optimizer_pp-1-of-2_dp-0-of-2_tp-1-of-2_exp-0-of-1.pt").unlink()
    assert refused() == (
        "error[missing-rank-file]: 1 of 8 optimizer files are missing\n"
        "  = note: in ckpt/7/optimizer: that of pp=1, dp=0, tp=1, exp=0\n"
        "  = help: copy the files of all ranks into one folder"
    )


def test_optimizer_files_of_another_run(ckpt: Path) -> None:
    one = ckpt / "optimizer/optimizer_pp-0-of-2_dp-0-of-2_tp-0-of-2_exp-0-of-1.pt"
    stray = one.with_name("optimizer_pp-0-of-1_tp-0-of-1_exp-0-of-1.pt")
    shutil.copy(one, stray)
    assert refused() == bad_shard("ckpt/7/optimizer", "its files are of runs of several sizes")
    stray.rename(one.with_name("optimizer_of_yesterday.pt"))
    assert refused() == bad_shard(
        "ckpt/7/optimizer/optimizer_of_yesterday.pt", "its name does not say of which rank it is"
    )


def test_states_that_are_not_of_this_size(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    shutil.copytree(fixture_checkpoint(CASES[1]) / "ckpt", tmp_path / "ckpt")
    folder = tmp_path / "ckpt/7/optimizer"
    name = "optimizer_pp-0-of-3_dp-{}-of-5_tp-0-of-2_exp-0-of-1.pt"
    shutil.copy(folder / name.format(0), folder / name.format(4))
    text = refused(str(tmp_path / "ckpt"))
    file = f"optimizer/{name.format(4)}"
    embed = "model.token_position_embeddings.pp_block.token_embedding.weight"
    assert text == (
        f"error[partition-mismatch]: `exp_avg` of `{embed}` has 58 elements in {file}\n"
        "  = note: this rank has 57 of the 288 elements of its shard\n"
        "  = help: the folder mixes two checkpoints; copy it again"
    )


def test_metadata_that_cannot_be_understood(ckpt: Path) -> None:
    (ckpt / "checkpoint_metadata.json").write_text("[]", encoding="utf-8")
    assert refused() == (
        "error[bad-metadata]: ckpt/7/checkpoint_metadata.json cannot be understood\n"
        "  = note: it is no object\n"
        "  = help: the file is damaged; copy it again, or use an earlier checkpoint"
    )


def test_states_that_were_left_out(ckpt: Path) -> None:
    for path in (ckpt / "optimizer").glob("*.pt"):
        path.unlink()
    assert [item.render() for item in read(Path("ckpt")).oddities] == [
        "warning[no-states]: ckpt/7 has the configuration of an optimizer, and none of its states\n"
        "  = help: copy the files `optimizer/optimizer_*.pt` of all ranks too"
    ]


def test_which_step_is_meant(ckpt: Path) -> None:
    assert refused(step="8") == ("error[unknown-step]: ckpt has no step `8`\n  = note: it has `7`")
    assert refused("ckpt/7", step="8") == (
        "error[unknown-step]: ckpt/7 has no step `8`\n"
        "  = note: it is the folder of a single step\n"
        "  = help: leave `--step` out, or give the folder above"
    )
    shutil.copytree(ckpt, "ckpt/10")
    Path("ckpt/latest.txt").unlink()
    assert refused() == (
        "error[ambiguous-step]: ckpt has 2 steps, and no `latest.txt` says which one is meant\n"
        "  = note: they are `7`, `10`\n"
        "  = help: choose one with `--step 10`"
    )
    assert read(Path("ckpt"), step="10").root == str(Path("ckpt/10").absolute())
