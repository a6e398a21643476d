"""OLMo-core's `config.json` tells the model, so that nothing has to be asked."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dcp_forge import Forge, counted

import reshard
from reshard.errors import ReshardError

NORM = {"name": "rms", "eps": 1e-6, "bias": False, "_CLASS_": "LayerNormConfig"}
MODEL = {
    "d_model": 8,
    "vocab_size": 10,
    "n_layers": 2,
    "block": {
        "name": "reordered_norm",
        "sequence_mixer": {
            "name": "default",
            "n_heads": 4,
            "n_kv_heads": 2,
            "bias": False,
            "rope": {"name": "default", "theta": 500000, "partial_rotary_factor": 1.0},
            "qk_norm": NORM,
            "use_head_qk_norm": False,
        },
        "layer_norm": NORM,
        "feed_forward": {"hidden_size": 12, "name": "default", "bias": False},
    },
    "lm_head": {"name": "default", "layer_norm": NORM, "bias": False},
    "name": "default",
    "init_std": 0.02,
    "tie_word_embeddings": False,
}
SHAPES = {
    "attention.w_q": (8, 8),
    "attention.w_k": (4, 8),
    "attention.w_v": (4, 8),
    "attention.w_out": (8, 8),
    "attention.q_norm": (8,),
    "attention.k_norm": (4,),
    "attention_norm": (8,),
    "feed_forward.w1": (12, 8),
    "feed_forward.w2": (8, 12),
    "feed_forward.w3": (12, 8),
    "feed_forward_norm": (8,),
}


def saved(folder: Path, model: Mapping[str, Any], without: tuple[str, ...] = ()) -> Path:
    """A step of OLMo-core with weights alone."""
    forge = Forge(folder / "step3/model_and_optim", version=None)
    shapes = {"embeddings": (10, 8), "lm_head.norm": (8,), "lm_head.w_out": (10, 8)}
    for layer in range(2):
        shapes |= {f"blocks.{layer}.{k}": v for k, v in SHAPES.items() if k not in without}
    for index, (name, shape) in enumerate(shapes.items()):
        key = f"model.{name}.weight"
        forge.tensor(key, counted(*shape) + index, path=("model", f"{name}.weight"))
    forge.write()
    (folder / "step3/train").mkdir()
    (folder / "step3/.metadata.json").write_text("{}")
    config = {"model": model, "train_module": {"max_sequence_length": 16}}
    (folder / "step3/config.json").write_text(json.dumps(config))
    return folder


def told(source: Path, target: Path) -> dict[str, Any]:
    reshard.convert(source, target, "hf")
    config: dict[str, Any] = json.loads((target / "config.json").read_text())
    return config


@pytest.mark.parametrize("key", ["sequence_mixer", "attention"])  # as 3.0 writes it, and 1.8
def test_sizes_and_facts_are_those_of_the_step(tmp_path: Path, key: str) -> None:
    model: Any = copy.deepcopy(MODEL)
    model["block"][key] = model["block"].pop("sequence_mixer")
    config = told(saved(tmp_path / "run", model), tmp_path / "hf")
    wanted = {
        "model_type": "olmo2",
        "hidden_size": 8,
        "intermediate_size": 12,
        "max_position_embeddings": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "vocab_size": 10,
    }
    assert {name: config[name] for name in wanted} == wanted


def test_a_block_that_norms_what_goes_in_is_a_llama(tmp_path: Path) -> None:
    model: Any = copy.deepcopy(MODEL)
    model["block"]["name"] = "default"
    del model["block"]["sequence_mixer"]["qk_norm"]
    without = ("attention.q_norm", "attention.k_norm")
    config = told(saved(tmp_path / "run", model, without), tmp_path / "hf")
    assert (config["model_type"], config["rope_theta"]) == ("llama", 500000)


def test_windows_make_it_another_model(tmp_path: Path) -> None:
    model: Any = copy.deepcopy(MODEL)
    model["block"]["sequence_mixer"]["sliding_window"] = {"pattern": [8, -1]}
    with pytest.raises(ReshardError) as caught:
        reshard.convert(saved(tmp_path / "run", model), tmp_path / "out", "megatron:tp=2")
    assert caught.value.diagnostics[0].code == "no-layout-fits"


def test_a_config_of_transformers_is_not_where_olmo_core_reads_its_own(tmp_path: Path) -> None:
    saved(tmp_path / "run", MODEL)
    model = tmp_path / "model"
    reshard.convert(tmp_path / "run", model, "hf", settings={"max_position_embeddings": 64})
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    done = reshard.convert(model, tmp_path / "out", "olmo-core")
    [moved] = [item for item in done.report.warnings if item.code == "side-file-moved"]
    assert moved.render() == (
        "warning[side-file-moved]: the `config.json` of transformers is written as "
        "`hf/config.json`\n"
        "  = note: OLMo-core reads a `config.json` of its own form in the folder of a step\n"
        "  = help: reshard finds it there on the way back"
    )
    assert not (tmp_path / "out/config.json").exists()
    again = tmp_path / "again"
    reshard.convert(tmp_path / "out", again, "hf")
    assert json.loads((again / "config.json").read_text()) == json.loads(
        (model / "config.json").read_text()
    )
    assert not (again / "hf").exists()
