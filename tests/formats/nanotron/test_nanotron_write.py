"""What is written for nanotron: file by file what its own ranks save, at any size."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import reshard
from reshard.errors import Exit, ReshardError
from reshard.formats.universal.manifest import own_digest, with_digest
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import open_torch_file, read_small

Fixture = Callable[[str], Path]
SAME = [
    ("nanotron_tp2_pp2_dp2_z1", "nanotron:tp=2,pp=2,dp=2"),
    ("nanotron_tp2_pp3_dp5_z1_tied", "nanotron:tp=2,pp=3,dp=5"),
    ("nanotron_tp1_z0", "nanotron"),
]


def plain(value: object) -> object:
    """A tree with the bytes of its tensors."""
    if isinstance(value, TensorRef):
        return str(value.dtype), value.shape, read_small(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def safetensors(path: Path) -> tuple[Mapping[str, str], Any, bytes]:
    """Metadata, type and shape, and the bytes of a file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    item = header["data"]
    return header.get("__metadata__", {}), (item["dtype"], item["shape"]), data[8 + size :]


def contents(folder: Path) -> dict[str, object]:
    """Every file that nanotron reads, in the terms in which it reads it."""
    out: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            out[name] = safetensors(path)
        elif path.suffix == ".pt" and not name.startswith("7/random/"):
            out[name] = plain(open_torch_file(path).root)
        elif path.suffix == ".json" and not path.name.startswith("."):
            out[name] = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in (".txt", ".yaml"):
            out[name] = path.read_text(encoding="utf-8")
    return out


def _shared(name: str) -> str:
    """The name of a file; those of schedulers without the data-parallel rank.

    The script that made these cases put it there. nanotron itself does not (2411b02).
    """
    return re.sub(r"(lr_scheduler_pp-\d+-of-\d+)_dp-\d+-of-\d+", r"\1", name)


@pytest.mark.parametrize(("name", "target"), SAME)
def test_the_same_size_gives_the_same_files(
    name: str, target: str, fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    done = reshard.convert(source, tmp_path / "out", target)
    wanted = {_shared(name): value for name, value in contents(source).items()}
    found = contents(tmp_path / "out")
    described = "7/optimizer/optimizer_config.json"
    mine, theirs = found.pop(described), wanted.pop(described)
    assert isinstance(mine, dict)
    assert isinstance(theirs, dict)
    assert mine["parallelism"] == theirs["parallelism"]
    assert {name: told(value) for name, value in found.items()} == {
        name: told(value) for name, value in wanted.items()
    }
    # The masters of these cases are made-up numbers, and not those of the weights.
    warnings = [item for item in done.report.warnings if item.code != "master-mismatch"]
    assert [item.render() for item in warnings] == [
        "warning[nanotron-left]: nanotron's folder lacks some of the state of the training\n"
        "  = note: random states, of which there is one a rank\n"
        "  = help: set `load_lr_scheduler: false` in the run's config where it is missing"
    ]


def told(value: object) -> object:
    """A file with its slices as numbers: `None` is the whole dimension."""
    if not isinstance(value, tuple) or "unsharded_shape" not in value[0]:
        return value
    metadata, (dtype, shape), data = value
    whole = [int(item) for item in metadata["unsharded_shape"].strip("()").split(",") if item]
    pairs = []
    for pair in metadata["local_global_slices_pairs"].split(";"):
        sides = zip(pair.split("#"), (shape, whole), strict=True)
        pairs.append([ranges(side, sizes) for side, sizes in sides])
    return metadata["version"], whole, pairs, dtype, shape, data


def ranges(text: str, sizes: list[int]) -> list[tuple[int, int]]:
    out = []
    for item, size in zip(text.split("|"), sizes, strict=True):
        start, stop, _ = item.split(",")
        out.append((0 if start == "None" else int(start), size if stop == "None" else int(stop)))
    return out


@pytest.mark.parametrize("target", ["nanotron:tp=1,pp=2,dp=3", "nanotron:tp=2,dp=4,zero=0"])
@pytest.mark.parametrize("name", [name for name, _ in SAME])
def test_another_size_holds_the_same(
    name: str, target: str, fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    reshard.convert(source, tmp_path / "out", target)
    assert reshard.verify(source, tmp_path / "out").ok
    back = dict(SAME)[name]
    reshard.convert(tmp_path / "out", tmp_path / "back", back)
    wanted, found = contents(source), contents(tmp_path / "back")
    for file in (
        file for file in wanted if file.startswith(("7/model/", "7/optimizer/optimizer_p"))
    ):
        assert told(found[file]) == told(wanted[file]), file


def test_a_padded_vocabulary(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("nanotron_tp1_z0") / "ckpt"
    settings = {"vocab_divisor": 8}
    reshard.convert(source, tmp_path / "out", "nanotron:tp=2", settings=settings)
    config = json.loads((tmp_path / "out/7/model_config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == 48
    folder = tmp_path / "out/7/model/model/lm_head/pp_block"
    rows = b""
    for tp in range(2):
        path = folder / f"model_weight_pp-rank-0-of-1_tp-rank-{tp}-of-2.safetensors"
        metadata, (_, shape), data = safetensors(path)
        assert shape == [24, 16]
        assert metadata["unsharded_shape"] == "(48, 16)"
        whole = "None,None,None"
        assert metadata["local_global_slices_pairs"] == (
            f"{whole}|{whole}#{24 * tp},{24 * tp + 24},None|{whole}"
        )
        rows += data
    original = reshard.open(source).read("model.lm_head.pp_block.weight", "param").tobytes()
    assert rows == original + bytes(2 * 12 * 16)


def test_weights_alone_from_a_model_folder(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("nanotron_tp2_pp2_dp2_z1") / "ckpt"
    reshard.convert(source, tmp_path / "hf", "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text("{}", encoding="utf-8")
    done = reshard.convert(tmp_path / "hf", tmp_path / "out", "nanotron:tp=2,pp=2")
    assert not (tmp_path / "out/0/optimizer").exists()
    assert (tmp_path / "out/0/tokenizer.json").read_text(encoding="utf-8") == "{}"
    assert (tmp_path / "out/latest.txt").read_text(encoding="utf-8") == "0"
    config = json.loads((tmp_path / "out/0/model_config.json").read_text(encoding="utf-8"))
    assert (config["num_key_value_heads"], config["vocab_size"]) == (2, 36)
    assert [item.render() for item in done.report.warnings] == [
        "warning[nanotron-left]: nanotron's folder lacks some of the state of the training\n"
        "  = note: how many samples and tokens were consumed, which begin at 0\n"
        "  = help: set `load_lr_scheduler: false` in the run's config where it is missing"
    ]
    one, other = reshard.open(source), reshard.open(tmp_path / "out")
    for name in one.tensors:
        assert one.read(name, "param").tobytes() == other.read(name, "param").tobytes()


def test_states_of_another_framework(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    settings = {"num_attention_heads": 4, "num_key_value_heads": 2}
    done = reshard.convert(source, tmp_path / "out", "nanotron:dp=3", settings=settings)
    (lacking,) = [item for item in done.report.warnings if item.code == "nanotron-left"]
    assert "the state of the learning rate scheduler" in lacking.notes
    reshard.convert(source, tmp_path / "u", "universal", names="nanotron", settings=settings)
    assert reshard.verify(tmp_path / "u", tmp_path / "out").ok


def refused(source: Path, dst: Path, target: str, **options: Any) -> str:
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, dst, target, **options)
    assert caught.value.exit_code == Exit.TARGET
    assert not dst.exists()
    return str(caught.value)


def test_what_cannot_be_written(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source, out = fixture_checkpoint("nanotron_tp1_z0") / "ckpt", tmp_path / "out"
    assert refused(source, out, "nanotron:zero=2") == (
        "error[bad-option]: option `zero` of target `nanotron` is `2`, and nanotron has 0 and 1\n"
        "  = help: write it as `nanotron:zero=1`"
    )
    assert refused(source, out, "nanotron:pp=7") == (
        "error[target-stages]: nanotron gives blocks to 5 of 7 pipeline ranks\n"
        "  = note: it balances them by what they compute, and the model has too few\n"
        "  = help: choose a smaller `pp`"
    )


def test_states_without_what_resumes_them(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("nanotron_tp1_z0") / "ckpt"
    states = "param,exp_avg,exp_avg_sq"
    assert refused(source, tmp_path / "out", "nanotron", states=states) == (
        "error[nanotron-states]: the source has no `step` of "
        "`model.token_position_embeddings.pp_block.token_embedding.weight`, which the optimizer "
        "resumes from\n"
        "  = help: write the weights alone, with `--states weights`"
    )


def test_states_without_param_groups(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    source = fixture_checkpoint("nanotron_tp1_z0") / "ckpt"
    reshard.convert(source, tmp_path / "u", "universal")
    path = tmp_path / "u" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["training"]["param_groups"].pop()
    data = json.dumps(manifest).encode("ascii")
    path.write_bytes(with_digest(data, own_digest(data)))
    assert refused(tmp_path / "u", tmp_path / "out", "nanotron") == (
        "error[nanotron-states]: the source does not tell the param groups of all parameters with "
        "states\n"
        "  = note: `model.decoder.{0..2}.pp_block.input_layernorm.weight` (3 tensors) is in none\n"
        "  = note: `model.decoder.{0..2}.pp_block.post_attention_layernorm.weight` (3 tensors) is "
        "in none\n"
        "  = note: `model.final_layer_norm.pp_block.weight` is in none\n"
        "  = help: write the weights alone, with `--states weights`"
    )


def optimizer_of(folder: Path, stage: str) -> tuple[Any, Any]:
    """The optimizer's and the scheduler's content of a stage."""
    at = f"{stage}_tp-0-of-1_exp-0-of-1.pt"
    return (
        plain(open_torch_file(folder / f"3/optimizer/optimizer_{at}").root),
        plain(open_torch_file(folder / f"3/lr_scheduler/lr_scheduler_{at}").root),
    )


def rates(folder: Path, stage: str) -> dict[str, tuple[float, float, float]]:
    """Learning rate, weight decay, and the scheduler's base rate of each parameter of a stage."""
    state, scheduler = optimizer_of(folder, stage)
    assert len(state["param_groups"]) == len(scheduler["base_lrs"]) == len(scheduler["lr_lambdas"])
    return {
        state["names"][index]: (group["lr"], group["weight_decay"], base)
        for group, base in zip(state["param_groups"], scheduler["base_lrs"], strict=True)
        for index in group["params"]
    }


def test_each_parameter_keeps_its_learning_rate_on_other_stages(
    fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    """nanotron has a group for each parameter, and a stage has those of its own parameters."""
    source = fixture_checkpoint("nanotron_pp2_z0_lr") / "ckpt"
    stages = [rates(source, f"pp-{stage}-of-2") for stage in range(2)]
    assert [len(stage) for stage in stages] == [13, 8]
    every = {**stages[0], **stages[1]}
    assert len({value[1:] for value in every.values()}) == 2
    reshard.convert(source, tmp_path / "one", "nanotron:zero=0")
    assert rates(tmp_path / "one", "pp-0-of-1") == every
    reshard.convert(tmp_path / "one", tmp_path / "three", "nanotron:pp=3,zero=0")
    found: dict[str, tuple[float, float, float]] = {}
    for stage in range(3):
        here = rates(tmp_path / "three", f"pp-{stage}-of-3")
        assert len(here) > 1
        assert not found.keys() & here.keys()
        found |= here
    assert found == every
    reshard.convert(tmp_path / "three", tmp_path / "two", "nanotron:pp=2,zero=0")
    for stage in range(2):
        assert (
            optimizer_of(tmp_path / "two", f"pp-{stage}-of-2")[1]
            == (optimizer_of(source, f"pp-{stage}-of-2")[1])
        )


def test_groups_of_other_frameworks_become_one_for_each_parameter(
    fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint("nanotron_pp2_z0_lr") / "ckpt"
    settings = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    reshard.convert(source, tmp_path / "universal", "universal", names="hf")
    training = reshard.open(tmp_path / "universal").training
    assert [len(group["params"]) for group in training.param_groups] == [23, 7]  # type: ignore[arg-type]
    reshard.convert(
        tmp_path / "universal", tmp_path / "back", "nanotron:pp=2,zero=0", settings=settings
    )
    for stage in range(2):
        at = f"pp-{stage}-of-2"
        assert rates(tmp_path / "back", at) == rates(source, at)
