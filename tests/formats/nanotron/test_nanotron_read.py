"""What is read of nanotron's checkpoints, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from reshard.errors import Exit, ReshardError
from reshard.formats import recognize
from reshard.formats.nanotron.read import read
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import open_torch_file, read_small
from safetensors_files import save
from torch_trees import write_tree

Fixture = Callable[[str], Path]
CASES = ("nanotron_tp2_pp2_dp2_z1", "nanotron_tp2_pp3_dp5_z1_tied", "nanotron_tp1_z0")
OWN = "nanotron_pp2_z0_lr"
MODEL = "model/model/decoder/0/pp_block"
NORM = f"{MODEL}/input_layernorm/model_weight.safetensors"
DOWN = f"{MODEL}/mlp/down_proj/model_weight_pp-rank-0-of-2_tp-rank-1-of-2.safetensors"


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


@pytest.mark.parametrize("data", [b"\xff\xfe", b"", b"seven", b"\0" * 3])
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


def as_arrays(value: object) -> object:
    """A tree of a file with its tensors of fp32 as arrays."""
    if isinstance(value, TensorRef):
        return np.frombuffer(read_small(value), np.float32).reshape(value.shape)
    if isinstance(value, dict):
        return {key: as_arrays(item) for key, item in value.items()}
    return value


def bad_shard(path: str, why: str) -> str:
    return (
        f"error[bad-shard]: {path} is not a shard of a distributed checkpoint\n"
        f"  = note: {why}\n"
        "  = help: the folder mixes two checkpoints, or is damaged; copy it again"
    )


def test_shards_that_are_none(ckpt: Path) -> None:
    spoil(ckpt / NORM, {"version": "1.5"})
    why = "it says that it is a part, and its file's name that it is whole"
    assert f"  = note: `data` in {NORM}: {why}\n" in refused()
    spoil(ckpt / NORM, None, ["data", "more"])
    assert refused().startswith(
        f"error[unnamed-tensor]: 1 tensor in {NORM} is named by no statement\n"
    )
    stray = ckpt / NORM.replace("model_weight", "weights")
    (ckpt / NORM).rename(stray)
    why = "its name does not say of which rank or parameter it is"
    assert refused() == bad_shard(str(stray), why)


def test_a_shape_as_numpy_prints_it(fixture_checkpoint: Fixture, ckpt: Path) -> None:
    """Releases before 1.5 print the sizes of arrays of numpy."""
    known = truth(fixture_checkpoint(CASES[0]))
    for path in ckpt.rglob("*_tp-rank-*.safetensors"):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        shape = header["__metadata__"]["unsharded_shape"]
        header["__metadata__"]["unsharded_shape"] = re.sub(r"([0-9]+)", r"np.int64(\1)", shape)
        raw = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])
    assert held(ckpt) == known


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "`` is no pair of slices"),
        ("0,2,None", "`0,2,None` is no pair of slices"),
        ("0,2,None#0,2,2", "`0,2,2` is no slice that can be read"),
        ("0,2,None#-2,2,None", "`-2,2,None` is no slice that can be read"),
        ("0,5,None#0,5,None", "`0,5,None` is not within 2"),
        ("0,2,None#3,5,None", "`3,5,None` is not within 4"),
        ("0,2,None#0,3,None", "`0,2,None#0,3,None` pairs [2] with [3] elements"),
        ("0,2,None|0,1,None#0,2,None", "`0,2,None|0,1,None` has 2 dimensions, the tensor 1"),
    ],
)
def test_slices_that_say_nothing(text: str, why: str, ckpt: Path) -> None:
    spoil(ckpt / DOWN, {"unsharded_shape": "(4,)", "local_global_slices_pairs": text})
    assert f"  = note: `data` in {DOWN}: {why}\n" in refused()


@pytest.mark.parametrize("text", ["", "(1;2)", "(-1,)", "(" + "1" * 60 + "x)", "(a)"])
def test_a_shape_that_is_none(text: str, ckpt: Path) -> None:
    spoil(ckpt / DOWN, {"unsharded_shape": text})
    assert f"  = note: `data` in {DOWN}: `{text}` is no shape\n" in refused()


def test_a_shard_of_another_tensor(ckpt: Path) -> None:
    spoil(
        ckpt / DOWN, {"unsharded_shape": "(4,)", "local_global_slices_pairs": "0,2,None#2,4,None"}
    )
    name = "model.decoder.0.pp_block.mlp.down_proj.weight"
    first = DOWN.replace("tp-rank-1", "tp-rank-0")
    why = f"`{name}` (param) has another shape or type than `data` in {first}"
    assert refused() == bad_shard(DOWN, why)


def test_a_shard_that_is_missing(ckpt: Path) -> None:
    path = ckpt / MODEL / "mlp/down_proj/model_weight_pp-rank-0-of-2_tp-rank-1-of-2.safetensors"
    path.unlink()
    shutil.rmtree(ckpt / "optimizer")
    with pytest.raises(ReshardError) as caught:
        reshard.open("ckpt")
    assert [item.code for item in caught.value.diagnostics] == ["coverage-gap"]


def test_an_optimizer_file_that_is_missing(ckpt: Path) -> None:
    file = "optimizer/optimizer_pp-1-of-2_dp-0-of-2_tp-1-of-2_exp-0-of-1.pt"
    (ckpt / file).unlink()
    text = refused()
    assert text.startswith(f"error[missing-rank-file]: 1 of 8 files are missing: {file}\n")
    assert "  = note: the others of pp=2, dp=2, tp=2, ep=1 are in ckpt/7\n" in text


def test_optimizer_files_of_another_run(ckpt: Path) -> None:
    one = ckpt / "optimizer/optimizer_pp-0-of-2_dp-0-of-2_tp-0-of-2_exp-0-of-1.pt"
    stray = one.with_name("optimizer_pp-0-of-1_tp-0-of-1_exp-0-of-1.pt")
    shutil.copy(one, stray)
    assert refused() == (
        f"error[mixed-runs]: optimizer/{stray.name} says pp=1, and there is a file of rank 1\n"
        "  = note: in ckpt/7\n"
        "  = help: the folder holds files of two runs; keep those of one"
    )
    stray.rename(one.with_name("optimizer_of_yesterday.pt"))
    why = "its name does not say of which rank or parameter it is"
    assert refused() == bad_shard("ckpt/7/optimizer/optimizer_of_yesterday.pt", why)


def test_states_that_are_not_of_this_size(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    shutil.copytree(fixture_checkpoint(CASES[1]) / "ckpt", tmp_path / "ckpt")
    folder = tmp_path / "ckpt/7/optimizer"
    name = "optimizer_pp-0-of-3_dp-{}-of-5_tp-0-of-2_exp-0-of-1.pt"
    shutil.copy(folder / name.format(0), folder / name.format(4))
    text = refused(str(tmp_path / "ckpt"))
    embed = "model.token_position_embeddings.pp_block.token_embedding.weight"
    assert text.startswith(
        "error[share-mismatch]: a share of exp_avg has 58 elements, and `as balanced` gives 57\n"
    )
    assert f"  = note: it is `state/0/exp_avg` in optimizer/{name.format(4)}\n" in text
    assert f"  = note: `{embed}` of 288 elements are shared\n" in text


def test_states_without_a_name(ckpt: Path) -> None:
    """What `names` of a rank's file does not name, and what it names and is not there."""
    path = ckpt / "optimizer/optimizer_pp-0-of-2_dp-0-of-2_tp-0-of-2_exp-0-of-1.pt"
    tree: Any = as_arrays(open_torch_file(path).root)
    for key, why in (("names", "number 0 has no name"), ("state", "has no states")):
        write_tree(path, {**tree, key: {k: v for k, v in tree[key].items() if k != 0}})
        assert why in refused()


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
    assert refused(step="8") == (
        "error[unknown-step]: ckpt has no step `8`\n"
        "  = note: steps: `7`\n"
        "  = help: give the name of one of these folders, or the number at its end"
    )
    assert refused("ckpt/7", step="8") == (
        f"error[unknown-step]: {ckpt.absolute()} is the folder of `7`, not of step `8`\n"
        "  = help: give the folder above it, or leave `--step` out"
    )
    shutil.copytree(ckpt, "ckpt/10")
    Path("ckpt/latest.txt").unlink()
    assert refused() == (
        "error[ambiguous-step]: ckpt has 2 steps, and no `latest.txt` says which one is meant\n"
        "  = note: they are `7`, `10`\n"
        "  = help: choose one with `--step 10`"
    )
    assert read(Path("ckpt"), step="10").root == str(Path("ckpt/10").absolute())


def test_a_file_of_something_else(ckpt: Path) -> None:
    """A rank's optimizer file that has nothing that one has."""
    path = ckpt / "optimizer/optimizer_pp-1-of-2_dp-0-of-2_tp-1-of-2_exp-0-of-1.pt"
    write_tree(path, {"seed": 4})
    text = refused()
    assert text.startswith("error[missing-place]: nothing lies at `state/{number}/{state}` in ")
    assert f"in optimizer/{path.name}\n" in text


def shard(path: Path, value: Any, metadata: Mapping[str, str] | None = None) -> None:
    """A file of one shard, of fp32."""
    save(path, {"data": ("F32", value.shape, value.tobytes())}, metadata)


def test_shards_of_experts(tmp_path: Path) -> None:
    """Expert-parallel ranks have experts of their own, and each a copy of the rest."""
    experts = np.arange(12, dtype=np.float32).reshape(4, 3)
    norm = np.arange(3, dtype=np.float32)
    shard(tmp_path / "5/model/2/norm/model_weight.safetensors", norm)
    for rank in range(2):
        rows = experts[2 * rank : 2 * rank + 2]
        pair = f"None,None,None|None,None,None#{2 * rank},{2 * rank + 2},None|None,None,None"
        said = {"unsharded_shape": "(4, 3)", "local_global_slices_pairs": pair}
        at = f"pp-rank-0-of-1_tp-rank-0-of-1_exp-rank-{rank}-of-2"
        home = tmp_path / "5/model/10/experts"
        shard(home / f"model_weight_{at}.safetensors", rows, said)
        parts = {"10.experts.weight": rows, "2.norm.weight": norm}
        state = {number: {"exp_avg": part + 1} for number, part in enumerate(parts.values())}
        tree = {
            "state": state,
            "names": dict(enumerate(parts)),
            "param_groups": [{"lr": 0.1, "params": [0, 1]}],
        }
        (tmp_path / "5/optimizer").mkdir(exist_ok=True)
        name = f"optimizer_pp-0-of-1_tp-0-of-1_exp-{rank}-of-2.pt"
        write_tree(tmp_path / "5/optimizer" / name, tree)
    (tmp_path / "5/checkpoint_metadata.json").write_text("{}", encoding="utf-8")
    assert held(tmp_path) == {
        (name, state): (value + shift).tobytes()
        for name, value in (("10.experts.weight", experts), ("2.norm.weight", norm))
        for state, shift in (("param", 0), ("exp_avg", 1))
    }
