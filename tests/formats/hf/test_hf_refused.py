"""Model folders that are not sound are refused, with the reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from model_folders import counted, framed, safetensors, sharded, torch_shard

import reshard
from reshard.dtypes import DType
from reshard.errors import Exit, ReshardError
from reshard.formats.hf.read import read
from reshard.storage.torch_writer import NewStorage, NewTensor
from torch_files import save

A, B = counted(3, 4), counted(5, start=100)
ONE = "model-00001-of-00001.safetensors"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()


def refused(folder: str = "model") -> str:
    with pytest.raises(ReshardError) as caught:
        read(Path(folder))
    assert caught.value.exit_code == Exit.SOURCE
    return str(caught.value)


def single(data: bytes) -> str:
    """What is said of a folder with one file."""
    Path("model/model.safetensors").write_bytes(data)
    return refused()


def entry(dtype: str, shape: list[int], start: int, stop: int) -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, stop]})


F2 = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x01", "it has 1 bytes; a header needs 8 and more"),
        (
            (10**15).to_bytes(8, "little"),
            "its header would have 1000000000000000 bytes, the file has 8",
        ),
        (
            (100_000_001).to_bytes(8, "little") + b"{}",
            "its header would have 100000001 bytes, the file has 10",
        ),
        (
            framed(f'{{"w":{F2},"w":{F2}}}', bytes(8)),
            "its header is not JSON: the key 'w' appears twice in one object",
        ),
        (framed(f' {{"w":{F2}}}', bytes(8)), "its header is not a JSON object"),
        (framed("[]"), "its header is not a JSON object"),
        (
            framed('{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
            "its header is not JSON: NaN is no JSON number",
        ),
        (framed('{"__metadata__":{"a":1}}'), "its `__metadata__` is not of strings"),
        (
            framed('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}}', bytes(8)),
            "the entry of `w` is not an object of `dtype`, `shape`, and `data_offsets`",
        ),
        (
            framed(f'{{"w":{F2},"x":{entry("F32", [1], 12, 16)}}}', bytes(16)),
            "`x` begins at byte 12 of the data, 8 is next",
        ),
        (
            framed(f'{{"w":{F2},"x":{entry("F32", [1], 4, 8)}}}', bytes(8)),
            "`x` begins at byte 4 of the data, 8 is next",
        ),
        (
            framed(f'{{"w":{F2}}}', bytes(9)),
            "its tensors take 8 bytes, 9 follow the header",
        ),
        (framed(f'{{"w":{F2}}}', bytes(7)), "`w` lies at bytes 0 to 8 of 7"),
        (
            framed(f'{{"w":{entry("F32", [3], 0, 8)}}}', bytes(8)),
            "`w` has 8 bytes, F32 of shape [3] takes 12",
        ),
        (
            framed(f'{{"w":{entry("F32", [2**62, 2**62], 0, 8)}}}', bytes(8)),
            f"`w` has 8 bytes, F32 of shape [{2**62}, {2**62}] takes {2**126}",
        ),
        (
            framed(f'{{"w":{entry("F32", [-2], 0, 8)}}}', bytes(8)),
            "`w` has a shape or offsets that are not of integers",
        ),
        (
            framed(f'{{"w":{entry("F6_E2M3", [4], 0, 3)}}}', bytes(3)),
            "`w` has the element type `F6_E2M3`, which is not known",
        ),
        (
            framed(f'{{"w":{entry("F4", [2, 3], 0, 3)}}}', bytes(3)),
            "`w` has shape [2, 3] in F4, which is not a whole number of bytes",
        ),
    ],
)
def test_a_file_that_is_not_sound(data: bytes, why: str) -> None:
    assert single(data) == (
        "error[bad-safetensors]: model/model.safetensors is not a valid safetensors file\n"
        f"  = note: {why}\n"
        "  = help: the file is damaged or incomplete; copy it again"
    )


def test_an_index_that_lists_a_file_that_is_missing() -> None:
    sharded(Path("model"), {ONE: {"a": A}}, {"a": ONE, "b": "gone.safetensors"})
    assert refused() == (
        "error[missing-file]: model/gone.safetensors is missing\n"
        "  = note: `model.safetensors.index.json` names it\n"
        "  = help: copy it from where the model came from"
    )
    sharded(Path("model"), {ONE: {"a": A}}, {"a": ONE, "b": "gone.safetensors", "c": "lost"})
    assert refused() == (
        "error[missing-file]: model lacks 2 of the 3 files that `model.safetensors.index.json` "
        "names\n"
        "  = note: missing: `gone.safetensors`, `lost`\n"
        "  = help: copy the missing files from where the model came from"
    )


@pytest.mark.parametrize(
    ("files", "weight_map", "notes"),
    [
        (
            {ONE: {"a": A}},
            {"a": ONE, "b": ONE},
            [f"`b` is not in `{ONE}`, where the index has it"],
        ),
        ({ONE: {"a": A, "b": B}}, {"a": ONE}, [f"`b` in `{ONE}` is not in the index"]),
        (
            {ONE: {"a": A}, "x.safetensors": {"a": A, "b": B}},
            {"a": ONE, "b": "x.safetensors"},
            [f"`a` is in `x.safetensors` too, and the index has it in `{ONE}`"],
        ),
        (
            {ONE: {f"t{i}": B for i in range(7)}},
            {"t0": ONE},
            [*(f"`t{i}` in `{ONE}` is not in the index" for i in range(1, 6)), "and 1 more"],
        ),
    ],
)
def test_an_index_that_is_not_that_of_the_files(
    files: dict[str, dict[str, np.ndarray]], weight_map: dict[str, str], notes: list[str]
) -> None:
    sharded(Path("model"), files, weight_map)
    assert refused() == "\n".join(
        [
            "error[index-mismatch]: model/model.safetensors.index.json and the files that it "
            "names disagree",
            *(f"  = note: {note}" for note in notes),
            "  = help: the folder mixes two checkpoints, or was not copied whole; copy it again",
        ]
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "it has no `weight_map`"),
        (
            '{"weight_map": {"a": "x", "a": "y"}}',
            "it is not valid JSON: the key 'a' appears twice in one object",
        ),
        ('{"weight_map": {"a": "../x"}}', "`a` is in file '../x', which is not a plain file name"),
        ('{"weight_map": {"a": "/x"}}', "`a` is in file '/x', which is not a plain file name"),
        ('{"weight_map": {"a": ".."}}', "`a` is in file '..', which is not a plain file name"),
        ('{"weight_map": {"a": 3}}', "`a` is in file 3, which is not a plain file name"),
        ('{"weight_map": {}, "metadata": 3}', "its `metadata` is not an object"),
    ],
)
def test_a_file_that_is_no_index(text: str, why: str) -> None:
    Path("model/model.safetensors.index.json").write_text(text, encoding="utf-8")
    assert refused() == (
        "error[bad-index]: model/model.safetensors.index.json is not the index of a sharded "
        "checkpoint\n"
        f"  = note: {why}\n"
        "  = help: copy it again, with the files that it names"
    )


def test_a_set_without_its_index() -> None:
    for number in (1, 3):
        path = Path(f"model/model-{number:05}-of-00003.safetensors")
        path.write_bytes(safetensors({f"w{number}": A}))
    assert refused() == (
        "error[incomplete-hf]: model lacks 1 of the 3 files of a set of weights\n"
        "  = note: by the names of the others there are also `model-00002-of-00003.safetensors`\n"
        "  = help: copy the missing files; a set that is whole needs no index"
    )
    for path in Path("model").iterdir():
        path.unlink()
    Path("model/pytorch_model-00002-of-00002.bin").write_bytes(b"")
    assert refused() == (
        "error[incomplete-hf]: model lacks 1 of the 2 files of a set of weights\n"
        "  = note: by the names of the others there are also `pytorch_model-00001-of-00002.bin`\n"
        "  = help: copy the missing files; a set that is whole needs no index"
    )


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("model.safetensors", "`model.safetensors.index.json` and `model.safetensors`, which it"),
        (
            "model-00001-of-00002.safetensors",
            "`model.safetensors.index.json` and `model-00001-of-00002.safetensors`, which it",
        ),
    ],
)
def test_two_sets_with_an_index(second: str, told: str) -> None:
    sharded(Path("model"), {ONE: {"a": A}})
    Path("model", second).write_bytes(safetensors({"a": A}))
    assert refused() == (
        "error[ambiguous-weights]: model holds more than one set of weights\n"
        f"  = note: it has {told} does not name\n"
        "  = help: move one of them out of the folder"
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.safetensors", "b.safetensors"], "`a.safetensors` and `b.safetensors`"),
        (["model.safetensors", ONE], f"`model.safetensors` and `{ONE}`"),
        (
            ["model.safetensors", "shard-00001-model-00001-of-00001.safetensors"],
            "`shard-00001-model-00001-of-00001.safetensors` and `model.safetensors`",
        ),
        (
            ["a.safetensors.index.json", "b.safetensors.index.json"],
            "`a.safetensors.index.json` and `b.safetensors.index.json`",
        ),
    ],
)
def test_two_sets(names: list[str], told: str) -> None:
    for name in names:
        Path("model", name).write_bytes(safetensors({"a": A}))
    assert refused() == (
        "error[ambiguous-weights]: model holds more than one set of weights\n"
        f"  = note: it has {told}\n"
        "  = help: move one of them out of the folder"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_that_leads_out(name: str) -> None:
    Path("model/model.safetensors").write_bytes(safetensors({"a": A}))
    Path("secret").write_text("{}", encoding="utf-8")
    Path("model", name).unlink(missing_ok=True)
    os.symlink("../secret", Path("model", name))
    assert refused().replace(os.getcwd(), "...") == (
        f"error[outside-link]: model/{name} is a link that points outside of the folder\n"
        "  = note: it leads to .../secret\n"
        "  = help: replace the link by the file, or give the folder that contains the file"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[1]", "it is no JSON object"),
        ("[" * 100_000, "it is nested too deep"),
    ],
)
def test_a_configuration_that_is_none(text: str, why: str) -> None:
    Path("model/model.safetensors").write_bytes(safetensors({"a": A}))
    Path("model/config.json").write_text(text, encoding="utf-8")
    assert refused() == (
        "error[bad-config]: model/config.json is not the configuration of a model\n"
        f"  = note: {why}\n"
        "  = help: copy it again from where the model came from"
    )


def test_a_step_is_asked_for() -> None:
    Path("model/model.safetensors").write_bytes(safetensors({"a": A}))
    with pytest.raises(ReshardError) as caught:
        reshard.inspect("model", step="3")
    assert str(caught.value) == (
        "error[unknown-step]: model has no step `3`\n"
        "  = note: a model folder contains the weights of one step, and does not record which\n"
        "  = help: leave `--step` out"
    )


@pytest.mark.parametrize(
    ("root", "why"), [([1], "it is no dict"), ({"epoch": 3}, "entry 'epoch' is no tensor")]
)
def test_a_torch_file_without_weights(root: object, why: str) -> None:
    save(Path("model/pytorch_model.bin"), root, {})
    assert refused() == (
        "error[no-state-dict]: model/pytorch_model.bin does not hold the weights of a model by "
        "name\n"
        f"  = note: {why}\n"
        "  = help: save `model.state_dict()` alone, or `model.save_pretrained()`"
    )


def test_a_torch_file_of_old() -> None:
    Path("model/pytorch_model.bin").write_bytes(b"pickle".ljust(257, b"\0") + b"ustar" + bytes(90))
    assert refused() == (
        "error[legacy-torch-file]: model/pytorch_model.bin is in the tar format of the first "
        "versions of torch\n"
        "  = help: load and save it again with a current torch, on a machine where you trust the "
        "file"
    )


def test_a_torch_index_that_is_not_that_of_the_files() -> None:
    storage = NewStorage(DType.F32, 5)
    save(Path("model/x.bin"), {"b": NewTensor(storage, 0, (5,), (1,))}, {storage: B.tobytes()})
    index = {"weight_map": {"a": "x.bin"}}
    Path("model/pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert refused() == (
        "error[index-mismatch]: model/pytorch_model.bin.index.json and the files that it names "
        "disagree\n"
        "  = note: `a` is not in `x.bin`, where the index has it\n"
        "  = note: `b` in `x.bin` is not in the index\n"
        "  = help: the folder mixes two checkpoints, or was not copied whole; copy it again"
    )


def shards(*present: tuple[int, int]) -> None:
    """Three ranks with two files each, of which some are there."""
    for rank, file in present:
        part = counted(2, start=2 * rank)
        torch_shard(Path("model"), rank, file, 2, {f"w{file}": ([2 * (rank - 1)], part)})


def test_a_shard_that_is_missing() -> None:
    shards((1, 1), (2, 1), (3, 1), (1, 2), (2, 2))
    assert refused() == (
        "error[missing-file]: model lacks shards that other files show to be missing\n"
        "  = note: 5 of them are there, of 3 ranks with 2 files each\n"
        "  = note: `shard-00003-model-00002-of-00002.safetensors` is not\n"
        "  = help: copy the folders of all ranks into one"
    )


def test_all_shards_of_one_number_are_missing() -> None:
    shards((1, 1), (2, 1))
    assert refused() == (
        "error[missing-file]: model lacks shards that other files show to be missing\n"
        "  = note: 2 of them are there, of 2 ranks with 2 files each\n"
        "  = note: `shard-00001-model-00002-of-00002.safetensors` is not\n"
        "  = note: `shard-00002-model-00002-of-00002.safetensors` is not\n"
        "  = help: copy the folders of all ranks into one"
    )


def test_shards_with_a_gap_are_refused_by_the_proof_of_coverage() -> None:
    torch_shard(Path("model"), 1, 1, 1, {"w": ([0], counted(2))})
    torch_shard(Path("model"), 2, 1, 1, {"w": ([3], counted(1))})
    with pytest.raises(ReshardError) as caught:
        reshard.open("model")
    assert caught.value.diagnostics[0].code == "coverage-gap"


def test_shards_of_two_saves() -> None:
    torch_shard(Path("model"), 1, 1, 1, {"w": ([0], B)})
    torch_shard(Path("model"), 1, 1, 2, {"w": ([0], B)})
    assert refused() == (
        "error[ambiguous-weights]: model holds more than one set of weights\n"
        "  = note: its files say that there are 1 and 2 files\n"
        "  = help: move one of them out of the folder"
    )


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (None, "it has no `DCP_SHARDING_INFO`"),
        (
            "{",
            "its `DCP_SHARDING_INFO` is no JSON: Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)",
        ),
        ("[]", "its `DCP_SHARDING_INFO` is no object"),
        ("{}", "its `DCP_SHARDING_INFO` has no offsets for `w` [5]"),
        (
            '{"w": {"saved_offsets": [-1]}}',
            "its `DCP_SHARDING_INFO` has no offsets for `w` [5]",
        ),
        (
            '{"w": {"saved_offsets": [0, 0]}}',
            "its `DCP_SHARDING_INFO` has no offsets for `w` [5]",
        ),
    ],
)
def test_a_shard_that_does_not_say_where_it_begins(info: str | None, why: str) -> None:
    metadata = {"format": "pt"} | ({} if info is None else {"DCP_SHARDING_INFO": info})
    name = "shard-00001-model-00001-of-00001.safetensors"
    Path("model", name).write_bytes(safetensors({"w": B}, metadata))
    assert refused() == (
        f"error[bad-shard]: model/{name} is not a shard of a distributed checkpoint\n"
        f"  = note: {why}\n"
        "  = help: the folder mixes two checkpoints, or is damaged; copy it again"
    )


def test_shards_that_disagree() -> None:
    torch_shard(Path("model"), 1, 1, 1, {"w": ([0], B)})
    torch_shard(Path("model"), 2, 1, 1, {"w": ([5], B.astype(np.float16))})
    assert refused() == (
        "error[bad-shard]: model/shard-00002-model-00001-of-00001.safetensors is not a shard of a "
        "distributed checkpoint\n"
        "  = note: `w` is F16 with 1 dimensions, and F32 with 1 dimensions in "
        "`shard-00001-model-00001-of-00001.safetensors`\n"
        "  = help: the folder mixes two checkpoints, or is damaged; copy it again"
    )
