"""Real checkpoints: everything that is read equals what the running optimizer held."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deepspeed_oracle import arrange, wholes

from real_cases import DEEPSPEED
from reshard.formats.deepspeed.detect import detect
from reshard.formats.deepspeed.read import read
from reshard.language import format_document, parse
from reshard.plan.catalog import Catalog

STATES = {"fp32": "master", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}

Open = Callable[[str], Path]


def truth(path: Path) -> dict[tuple[str, str], tuple[str, list[int], bytes]]:
    """Tensors of a safetensors file: (name, state) -> element type, shape, bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    out = {}
    for key, entry in json.loads(data[8 : 8 + length]).items():
        if key != "__metadata__":
            name, _, state = key.rpartition("/")
            start, stop = (8 + length + at for at in entry["data_offsets"])
            out[name, STATES[state]] = (entry["dtype"], entry["shape"], data[start:stop])
    return out


@pytest.mark.parametrize("case", DEEPSPEED)
def test_every_state_is_the_truth(case: str, fixture_checkpoint: Open) -> None:
    folder = fixture_checkpoint(case)
    assert detect(folder / "ckpt")
    catalog = read(folder / "ckpt")
    found = wholes(arrange(catalog))
    wanted = truth(folder / "truth.safetensors")
    assert wanted
    for (name, state), (_, shape, raw) in wanted.items():
        key = (name, state)
        if state == "master" and key not in found:
            key = (name, "param")  # fp32 without ZeRO has no other copy
        assert list(found[key].shape) == shape, key
        assert found[key].tobytes() == raw, key
    states = {name for name, state in found if state == "exp_avg"}
    assert states == {name for name, state in wanted if state == "exp_avg"}


@pytest.mark.parametrize("case", DEEPSPEED)
def test_weights_are_the_master_weights_rounded(case: str, fixture_checkpoint: Open) -> None:
    found = wholes(arrange(read(fixture_checkpoint(case) / "ckpt")))
    for (name, state), weight in found.items():
        if state == "param" and (name, "master") in found:
            rounded = found[name, "master"].astype(weight.dtype)
            assert rounded.tobytes() == weight.tobytes(), name


@pytest.mark.parametrize("case", DEEPSPEED)
def test_the_layout_is_canonical(case: str, fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint(case) / "ckpt")
    assert format_document(parse(catalog.layout.text, "layout")) == catalog.layout.text


@pytest.mark.parametrize("case", DEEPSPEED)
def test_training_is_whole_and_json(case: str, fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint(case) / "ckpt")
    training = catalog.training
    framework = training.framework
    assert framework is not None
    json.dumps([training.param_groups, training.state, framework], allow_nan=False)
    assert training.iteration == 3
    assert framework["name"] == "deepspeed"
    assert framework["version"] == "0.19.8"
    assert framework["counters"] == {
        "global_steps": 3,
        "global_samples": 72 if case.startswith("autotp") else 36,
        "skipped_steps": 0,
    }
    client = framework["client_state"]
    assert isinstance(client, dict)
    assert client["my_iteration"] == 3
    assert client["args"] == {"note": "client_state"}
    listed = [name for group in training.param_groups for name in names_of(group)]
    assert len(listed) == len(set(listed))
    assert set(listed) == optimized(catalog)


def names_of(group: object) -> list[str]:
    assert isinstance(group, dict)
    return list(group["params"])


def optimized(catalog: Catalog) -> set[str]:
    return {w.name for w in arrange(catalog).wholes if w.state == "exp_avg"}


@pytest.mark.parametrize("case", DEEPSPEED)
def test_files_are_listed_with_their_sizes(case: str, fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint(case) / "ckpt")
    root = Path(catalog.root)
    assert {file.path for file in catalog.files} == {path.name for path in root.glob("*.pt")}
    assert all((root / file.path).stat().st_size == file.nbytes for file in catalog.files)


def test_tied_weights_are_names_of_one(fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt")
    assert catalog.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in {tensor.name for tensor in catalog.tensors}


@pytest.mark.parametrize("case", ["z1_fp32_dp2_frozen", "z3_fp32_dp2_frozen"])
def test_frozen_parameters(case: str, fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint(case) / "ckpt")
    assert set(catalog.frozen) == {
        "model.embed_tokens.weight",
        *(f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    found = wholes(arrange(catalog))
    for name in catalog.frozen:
        assert [state for own, state in found if own == name] == ["param"]


def test_stage_3_has_master_weights_alone(fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint("z3_bf16_dp3_untied") / "ckpt")
    assert {tensor.state for tensor in catalog.tensors} == {
        "master",
        "exp_avg",
        "exp_avg_sq",
        "step",
    }
    assert catalog.training.framework is not None
    assert catalog.training.framework["compute_dtype"] == "BF16"


def test_round_robin_groups_are_in_the_optimizer_s_order(fixture_checkpoint: Open) -> None:
    plain = read(fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt")
    shuffled = read(fixture_checkpoint("z1_fp32_dp4_rr") / "ckpt")
    assert [names_of(group) for group in shuffled.training.param_groups] == [
        names_of(group) for group in plain.training.param_groups
    ]


def test_a_pipeline_says_which_layer_has_which_names(fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint("pipe_pp2_dp2_z1_fp32_tied") / "ckpt")
    assert catalog.mesh == {"pp": 2, "tp": 1, "dp": 2}
    framework = catalog.training.framework
    assert framework is not None
    layers = framework["pipeline"]["layers"]  # type: ignore[index]
    assert list(layers) == ["0", "1", "2", "3", "4", "5"]
    assert layers["0"] == {"weight": "tied_modules.embed.weight"}
    assert layers["1"]["norm.weight"] == "1.norm.weight"
    stages = {
        tensor.coord for tensor in catalog.tensors if tensor.name == "tied_modules.embed.weight"
    }
    assert stages == {(("pp", 0),), (("pp", 1),)}


def test_experts_are_numbered_by_rank(fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint("moe_ep2_dp4_z1_bf16") / "ckpt")
    assert catalog.mesh == {"pp": 1, "tp": 1, "ep": 2, "dp": 4}
    prefix = "moe1.deepspeed_moe.experts.deepspeed_experts"
    own = [t.coord for t in catalog.tensors if t.name == f"{prefix}.1.a.weight"]
    assert set(own) == {(("ep", 0),), (("ep", 1),)}
    assert not [t for t in catalog.tensors if t.name == f"{prefix}.3.a.weight"]
    names = {name for name, _ in wholes(arrange(catalog)) if name.startswith(prefix)}
    assert len(names) == 16
    assert f"{prefix}.3.a.weight" in names
    experts = names_of(catalog.training.param_groups[2])
    assert [name.split(".")[4] for name in experts] == [*"00112233", *"00112233"]


def test_a_step_is_one_number_for_every_parameter(fixture_checkpoint: Open) -> None:
    found = wholes(arrange(read(fixture_checkpoint("z2_bf16_dp2_tied") / "ckpt")))
    steps = {name: value for (name, state), value in found.items() if state == "step"}
    assert set(steps) == {name for name, state in found if state == "master"}
    assert {(value.shape, value.dtype, float(value)) for value in steps.values()} == {
        ((), np.dtype(np.float32), 3.0)
    }


LAYOUTS = {
    "z1_fp32_dp2_untied": """\
layout deepspeed {
    mesh pp, tp, dp

    "**" = [...]
}
""",
    "toytp_tp2_dp2_z1_fp32": """\
layout deepspeed {
    mesh pp, tp, dp

    "word_embeddings.weight" = [rows over tp truncated to 91, ...]
    "pos.weight"             = [...]
    "blocks.{i}.ln.weight"   = [...] averaged over tp
    "blocks.{i}.ln.bias"     = [...] averaged over tp
    "blocks.{i}.qkv.weight"  = [(a:32 over tp + b:16 over tp + c:16 over tp), ...]
    "blocks.{i}.o.weight"    = [_, columns over tp]
    "blocks.{i}.o.bias"      = [...]
    "blocks.{i}.h4.weight"   = [(a:64 over tp + b:64 over tp), ...]
    "blocks.{i}.down.weight" = [_, columns over tp]
    "final.weight"           = [...]
    "final.bias"             = [...]
}
""",
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_layout_of_a_case(case: str, fixture_checkpoint: Open) -> None:
    assert read(fixture_checkpoint(case) / "ckpt").layout.text == LAYOUTS[case]
