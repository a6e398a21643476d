"""Tied weights: stored twice, they are one tensor in every target; copies must agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dcp_forge import Forge, counted

import reshard
from reshard.errors import ReshardError
from reshard.storage.dcp_metadata import read_metadata

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
TOLD = {
    "model_type": "llama",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
}


@pytest.mark.parametrize(
    "target",
    [
        "hf",
        "megatron:tp=2",
        "megatron-dist",
        "torchtitan",
        "olmo-core",
        "nanotron",
        "deepspeed:zero=2,dp=3",
        "universal",
        "dcp:dp=3",
        "accelerate",
    ],
)
def test_every_target_has_one_tensor_and_is_read_back(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, target: str
) -> None:
    source = fixture_checkpoint("dcp_dp2_tied") / "ckpt"
    told = tmp_path / "told"
    told.mkdir()
    (told / "config.json").write_text(json.dumps(TOLD), encoding="utf-8")
    config = told if target == "hf" else None
    reshard.convert(source, tmp_path / "out", target, settings=HEADS, config=config)
    states = "weights" if target == "hf" else "all"
    found = reshard.verify(source, tmp_path / "out", settings=HEADS, states=states)
    assert found.ok
    if target == "hf":
        made = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
        assert made["tie_word_embeddings"] is True
        told = tmp_path / "out"
    reshard.convert(tmp_path / "out", tmp_path / "back", "hf", settings=HEADS, config=told)
    made = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert made["tie_word_embeddings"] is True
    first = reshard.open(tmp_path / "back").read("model.embed_tokens.weight")
    assert (first == reshard.open(source).read("model.embed_tokens.weight")).all()


@pytest.mark.parametrize(
    ("names", "head", "embedding"),
    [
        ("hf", "lm_head.weight", "model.embed_tokens.weight"),
        ("torchtitan", "lm_head.weight", "tok_embeddings.weight"),
        ("olmo_core", "lm_head.w_out.weight", "embeddings.weight"),
        ("megatron", "output_layer.weight", "embedding.word_embeddings.weight"),
    ],
)
def test_the_head_is_there_in_the_names_of_any_layout(
    fixture_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    names: str,
    head: str,
    embedding: str,
) -> None:
    """torch's loader asks for the tied head under its name, wherever the source stores it."""
    source = fixture_checkpoint("dcp_dp2_tied") / "ckpt"
    reshard.convert(source, tmp_path / "a", "torchtitan", settings=HEADS)
    for at, made in ((source, "b"), (tmp_path / "a", "c")):
        reshard.convert(at, tmp_path / made, "dcp", settings=HEADS, names=names)
        found = reshard.open(tmp_path / made)
        assert found.aliases == {head: embedding}
        assert (found.read(head) == reshard.open(source).read("model.embed_tokens.weight")).all()
        prefix = "model." if made == "b" else ""  # torchtitan has the model at the top
        stored = {item.name for item in read_metadata(tmp_path / made).tensors}
        assert {f"{prefix}{head}", f"{prefix}{embedding}"} <= stored


def _model(folder: Path, embed: object, head: object, *, trained: str = "") -> Path:
    forge = Forge(folder)
    for name, array in (("embed.weight", embed), ("head.weight", head)):
        forge.tensor(f"model.{name}", array, path=("model", name))  # type: ignore[arg-type]
    if trained:
        path = ("optim", "state", trained, "exp_avg")
        forge.tensor(f"optim.state.{trained}.exp_avg", counted(8, 4), path=path)
        forge.object("optim.param_groups.0.lr", 0.1, path=("optim", "param_groups", 0, "lr"))
    return forge.write()


@pytest.mark.parametrize(
    ("trained", "aliases"),
    [
        ("embed.weight", {"head.weight": "embed.weight"}),
        ("head.weight", {"embed.weight": "head.weight"}),
        ("", {"head.weight": "embed.weight"}),
    ],
)
def test_under_either_name_with_an_optimizer_or_without(
    tmp_path: Path, trained: str, aliases: dict[str, str]
) -> None:
    source = _model(tmp_path / "in", counted(8, 4), counted(8, 4), trained=trained)
    opened = reshard.open(source)
    assert dict(opened.aliases) == aliases
    assert list(opened.tensors) == list(aliases.values())
    reshard.convert(source, tmp_path / "out", "dcp:dp=2")
    assert dict(reshard.open(tmp_path / "out").aliases) == aliases
    assert reshard.verify(source, tmp_path / "out").ok


def test_what_differs_is_all_the_same_or_is_said_not_to_be_tied_is_not_tied(tmp_path: Path) -> None:
    other = counted(8, 4)
    other[7, 3] += 1
    assert not reshard.open(_model(tmp_path / "a", counted(8, 4), other)).aliases
    zeros = np.zeros((8, 4), dtype="float32")
    assert not reshard.open(_model(tmp_path / "b", zeros, zeros)).aliases
    said = _model(tmp_path / "c", counted(8, 4), counted(8, 4), trained="embed.weight")
    (said / "config.json").write_text('{"tie_word_embeddings": false}', encoding="utf-8")
    assert not reshard.open(said).aliases


def test_layers_that_are_alike_before_they_are_trained_are_not_tied(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    for index in range(2):
        name = f"layers.{index}.weight"
        forge.tensor(f"model.{name}", counted(8, 4), path=("model", name))
    assert not reshard.open(forge.write()).aliases


def test_copies_that_are_said_to_be_tied_and_differ_are_drift(tmp_path: Path) -> None:
    other = counted(8, 4)
    other[7, 3] += 1
    source = _model(tmp_path / "in", counted(8, 4), other)
    (source / "config.json").write_text('{"tie_word_embeddings": true}', encoding="utf-8")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "dcp")
    assert [item.code for item in caught.value.diagnostics] == ["replica-mismatch"]
