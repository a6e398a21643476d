"""What is written as a universal checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from universal_source import (
    TRAINING,
    arrange,
    convert,
    local,
    make_catalog,
    numbers,
    read_whole,
    tp_catalog,
    tree,
    whole_catalog,
    wholes,
)

from reshard.engine.run import execute
from reshard.errors import ReshardError
from reshard.formats.sharded_set import share_out, stem_of
from reshard.formats.universal.read import read
from reshard.formats.universal.write import prepare
from reshard.plan.build import build_plan
from reshard.plan.target import Target
from reshard.store.output import OutputFolder
from reshard.store.source_files import SourceFiles

UNIVERSAL = Target("universal", {})


def manifest(folder: Path) -> dict[str, object]:
    """The manifest as plain JSON."""
    value = json.loads((folder / "manifest.json").read_text(encoding="ascii"))
    assert isinstance(value, dict)
    return value


def without_provenance(folder: Path) -> dict[str, object]:
    """The manifest without what tells one source from another."""
    return {k: v for k, v in manifest(folder).items() if k not in ("digest", "provenance")}


def test_every_tensor_comes_out_whole(tmp_path: Path) -> None:
    convert(arrange(tp_catalog(tmp_path / "src")), tmp_path / "out")
    catalog = read(tmp_path / "out")
    expected = {key: data.tobytes() for key, data in wholes().items()}
    expected["rng", "extra"] = bytes(range(40, 48))
    assert read_whole(catalog) == expected


def test_what_is_known_besides_tensors_comes_out_the_same(tmp_path: Path) -> None:
    source = tp_catalog(tmp_path / "src", frozen=("norm.weight",), config={"n": [1, {"m": 2.5}]})
    convert(arrange(source), tmp_path / "out")
    catalog = read(tmp_path / "out")
    assert catalog.training == source.training == TRAINING
    assert catalog.config == {"n": [1, {"m": 2.5}]}
    assert (catalog.aliases, catalog.buffers, catalog.frozen) == (
        {"head.weight": "embed.weight"},
        ("norm.mask",),
        ("norm.weight",),
    )
    assert (catalog.format, catalog.mesh) == ("universal", {})
    assert {item.path for item in catalog.files} == tree(tmp_path / "out").keys()


def test_the_engine_writes_the_same_as_loops(tmp_path: Path) -> None:
    source = arrange(tp_catalog(tmp_path / "src"))
    convert(source, tmp_path / "loops")
    output = prepare(source, UNIVERSAL)
    plan = build_plan(source, output.placed)
    with (
        OutputFolder.create(tmp_path / "engine", False) as folder,
        SourceFiles(plan.root, source.catalog.files) as files,
    ):
        sizes = {item.file: len(item.data) for item in output.head} | dict(output.files)
        for path, nbytes in sizes.items():
            folder.open_file(path, nbytes)
        for item in output.head:
            folder.write(item.file, item.byte_offset, item.data)
        (last,) = output.finish(execute(plan, folder, files))
        folder.open_file(last.file, len(last.data))
        folder.write(last.file, 0, last.data)
        folder.commit(last.file)
    assert tree(tmp_path / "engine") == tree(tmp_path / "loops")


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tp_catalog(tmp_path / "src")
    convert(arrange(source), tmp_path / "one")
    convert(arrange(source), tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_two_layouts_of_one_model_give_the_same_tensor_files(tmp_path: Path) -> None:
    convert(arrange(tp_catalog(tmp_path / "tp")), tmp_path / "one")
    convert(arrange(whole_catalog(tmp_path / "whole")), tmp_path / "two")
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == ["layout.ucl", "manifest.json"]


def test_universal_to_universal_changes_the_provenance_alone(tmp_path: Path) -> None:
    convert(arrange(tp_catalog(tmp_path / "src")), tmp_path / "one")
    convert(arrange(read(tmp_path / "one")), tmp_path / "two")
    convert(arrange(read(tmp_path / "two")), tmp_path / "three")
    one, three = tree(tmp_path / "one"), tree(tmp_path / "three")
    assert one.keys() == three.keys()
    assert [name for name in one if one[name] != three[name]] == ["manifest.json"]
    assert without_provenance(tmp_path / "one") == without_provenance(tmp_path / "three")
    records = manifest(tmp_path / "three")["provenance"]
    assert isinstance(records, list)
    assert [record["format"] for record in records] == ["test", "universal", "universal"]
    assert records[:1] == manifest(tmp_path / "one")["provenance"]


def test_provenance_says_how_often_a_tensor_was_stored(tmp_path: Path) -> None:
    convert(arrange(tp_catalog(tmp_path / "src")), tmp_path / "out")
    (record,) = manifest(tmp_path / "out")["provenance"]  # type: ignore[misc]
    assert record["mesh"] == {"tp": 2, "dp": 4}
    assert record["copies"]["norm.mask"] == {"param": [2, "equal"]}
    assert record["copies"]["a.weight"] == {"step": [2, "equal"]}
    paths = ["rank-tp0.bin", "rank-tp1.bin", "rank.bin"]
    assert [path for path, _, _ in record["files"]] == paths


def test_averaged_copies_are_called_a_mean(tmp_path: Path) -> None:
    layout = 'layout l { mesh tp "w" = [_] averaged over tp }'
    tensors = [local("w", "param", {"tp": tp}, numbers(tp, 3), 1) for tp in range(2)]
    source = arrange(make_catalog(tmp_path / "src", layout, {"tp": 2}, tensors))
    output = prepare(source, UNIVERSAL)
    plan = build_plan(source, output.placed)
    assert {copy.mode for item in plan.placed for copy in item.array.copies} == {"mean"}


def test_the_safetensors_library_reads_the_files(tmp_path: Path) -> None:
    layout = 'layout plain { "**" = [...] }'
    tensors = [
        local("w", "param", {}, numbers(0, 3, 2), 1),
        local("empty", "param", {}, numbers(0, 0, 4), 1),
        local("scalar", "param", {}, numbers(5), 1),
        local("bytes", "param", {}, numbers(1, 3, dtype="uint8"), 1),
        local("v", "param", {}, numbers(9, 2, dtype="int64"), 1),
    ]
    convert(arrange(make_catalog(tmp_path / "src", layout, {}, tensors)), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert {name: data.tolist() for name, data in found.items()} == {
        "w": [[0, 1], [2, 3], [4, 5]],
        "empty": [],
        "scalar": 5,
        "bytes": [1, 2, 3],
        "v": [9, 10],
    }


def test_files_are_cut_at_the_largest_size(tmp_path: Path) -> None:
    convert(arrange(tp_catalog(tmp_path / "src")), tmp_path / "out", max_file_nbytes=100)
    weights = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    names: dict[str, list[str]] = {}
    for name, path in weights["weight_map"].items():
        names.setdefault(path, []).append(name)
    assert names == {
        "model-00001-of-00002.safetensors": ["a.weight"],
        "model-00002-of-00002.safetensors": [
            "b.weight",
            "embed.weight",
            "norm.mask",
            "norm.weight",
        ],
    }
    large = json.loads((tmp_path / "out" / "master.safetensors.index.json").read_bytes())
    assert large["metadata"] == {"total_size": 80 + 192 + 96 + 16}
    assert large["weight_map"]["a.weight"] == "master-00001-of-00003.safetensors"
    assert len(read(tmp_path / "out").tensors) == 22


def test_names_are_in_natural_order(tmp_path: Path) -> None:
    tensors = [local(f"h.{i}.w", "param", {}, numbers(i, 1), 1) for i in (10, 9, 1)]
    layout = 'layout plain { "**" = [...] }'
    source = arrange(make_catalog(tmp_path / "src", layout, {}, tensors))
    (group,) = share_out(source.wholes)
    assert [item.name for item in group.files[0].tensors] == ["h.1.w", "h.9.w", "h.10.w"]


def test_states_that_are_not_asked_for_are_left_out_and_named(tmp_path: Path) -> None:
    source = arrange(tp_catalog(tmp_path / "src"))
    output = convert(source, tmp_path / "out", states=("param", "step"))
    assert {item.state for item in read(tmp_path / "out").tensors} == {"param", "step", "extra"}
    left = {(name, state) for name, state, _ in output.dropped}
    assert left == {
        (name, state)
        for name in ("embed.weight", "a.weight", "b.weight", "norm.weight")
        for state in ("master", "exp_avg", "exp_avg_sq")
    }
    (record,) = manifest(tmp_path / "out")["provenance"]  # type: ignore[misc]
    assert record["left_out"] == ["master", "exp_avg", "exp_avg_sq"]
    arrange(read(tmp_path / "out"))


def test_a_rule_whose_tensors_are_left_out_goes(tmp_path: Path) -> None:
    layout = 'layout l { "mask" = [...] "w" = [_] }'
    tensors = [
        local("mask", "param", {}, numbers(0, 2), 1),
        local("w", "exp_avg", {}, numbers(0, 2), 1),
    ]
    source = arrange(make_catalog(tmp_path / "src", layout, {}, tensors))
    output = convert(source, tmp_path / "out", states=("exp_avg",))
    assert not output.warnings
    assert read(tmp_path / "out").layout.text == 'layout l {\n    "w" = [_]\n}\n'
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert manifest(tmp_path / "out")["weights_from"] == []


def test_without_param_the_weights_are_the_masters(tmp_path: Path) -> None:
    layout = 'layout plain { "**" = [...] }'
    tensors = [
        local("w", "master", {}, numbers(0, 2), 1),
        local("w", "exp_avg", {}, numbers(0, 2), 1),
        local("frozen", "param", {}, numbers(0, 2), 1),
    ]
    source = arrange(make_catalog(tmp_path / "src", layout, {}, tensors, frozen=("frozen",)))
    convert(source, tmp_path / "out")
    weights = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    assert weights == {
        "metadata": {"total_size": 16},
        "weight_map": {
            "frozen": "model-00001-of-00001.safetensors",
            "w": "master-00001-of-00001.safetensors",
        },
    }
    assert manifest(tmp_path / "out")["weights_from"] == ["param", "master"]


def test_a_checkpoint_of_extra_tensors_alone_can_be_written(tmp_path: Path) -> None:
    tensors = [local("rng", "extra", {}, numbers(0, 2), 1)]
    layout = 'layout plain { "**" = [...] optional }'
    source = arrange(make_catalog(tmp_path / "src", layout, {}, tensors))
    convert(source, tmp_path / "out")
    again = arrange(read(tmp_path / "out"))
    assert [item.name for item in again.wholes] == ["rng"]


@given(st.lists(st.text(), unique=True))
def test_every_state_has_file_names_of_its_own(states: list[str]) -> None:
    stems = [stem_of(state) for state in ["param", "extra", *states]]
    known = {"param", "extra"} & set(states)
    assert len(set(stems)) == len(stems) - len(known)
    assert all(stem.replace("%", "_").replace("-", "_").isascii() for stem in stems)
    assert all("/" not in stem for stem in stems if stem != "extra/tensors")


def test_odd_states_are_written_and_read(tmp_path: Path) -> None:
    states = ["model", "manifest.json", "../up", "extra/tensors", "übrig", "Param"]
    tensors = [local("w", state, {}, numbers(i, 2), 1) for i, state in enumerate(states)]
    layout = 'layout plain { "**" = [...] }'
    source = arrange(make_catalog(tmp_path / "src", layout, {}, tensors))
    convert(source, tmp_path / "out")
    found = read_whole(read(tmp_path / "out"))
    assert found == {("w", s): numbers(i, 2).tobytes() for i, s in enumerate(states)}
    assert "%6Dodel-00001-of-00001.safetensors" in tree(tmp_path / "out")


@pytest.mark.parametrize("name", ["__metadata__", "half\ud800"])
def test_a_name_that_no_file_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    layout = 'layout plain { "**" = [...] }'
    tensors = [local(name, "param", {}, numbers(0, 2), 1)]
    source = arrange(make_catalog(tmp_path / "src", layout, {}, tensors))
    with pytest.raises(ReshardError) as caught:
        prepare(source, UNIVERSAL)
    assert str(caught.value) == (
        f"error[tensor-name]: no safetensors file can hold a tensor of the name {name!r}\n"
        "  = note: state `param`\n"
        "  = help: rename it where the checkpoint is saved"
    )


def test_the_target_has_no_options(tmp_path: Path) -> None:
    source = arrange(tp_catalog(tmp_path / "src"))
    with pytest.raises(ReshardError, match="target `universal` has no option `tp`"):
        prepare(source, Target("universal", {"tp": "2"}))
