"""What nanotron's configuration says of the model reaches another framework, or is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reshard
from reshard import ReshardError

Fixture = Callable[[str], Path]
CONFIG = Path("ckpt/7/model_config.json")


@pytest.fixture
def said(
    fixture_checkpoint: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Puts more into the configuration of a checkpoint, which is called `ckpt` from here."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fixture_checkpoint("nanotron_tp1_z0") / "ckpt", "ckpt")

    def more(**config: Any) -> None:
        found = json.loads(CONFIG.read_text(encoding="utf-8"))
        CONFIG.write_text(json.dumps({**found, **config}), encoding="utf-8")

    return more


def config(to: str = "hf") -> dict[str, Any]:
    reshard.convert("ckpt", "out", to)
    found = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_what_changes_nothing_is_no_reason_to_warn(said: Callable[..., None]) -> None:
    said(z_loss_enabled=True, _attn_implementation="sdpa", log_attn_probs=True, rope_scaling=None)
    done = reshard.convert("ckpt", "out", "hf")
    assert "unknown-arguments" not in {item.code for item in done.report.warnings}


@pytest.mark.parametrize(
    ("stated", "key", "value"),
    [
        ({"hidden_act": "gelu"}, "hidden_act", "gelu"),
        ({"sliding_window_size": 64}, "sliding_window", 64),
        (
            {"rope_seq_len_interpolation_factor": 4.0},
            "rope_scaling",
            {"rope_type": "linear", "factor": 4.0},
        ),
    ],
    ids=str,
)
def test_what_transformers_can_say(
    stated: dict[str, Any], key: str, value: object, said: Callable[..., None]
) -> None:
    said(**stated)
    assert config()[key] == value
    reshard.convert("out", "again", "nanotron")
    for path in Path("again").rglob("config.json"):
        path.unlink()
    own = json.loads(Path("again/0/model_config.json").read_text(encoding="utf-8"))
    assert {name: own[name] for name in stated} == stated


@pytest.mark.parametrize(
    "stated",
    [
        {"no_rope_layer": 2},
        {"rope_scaling": {"factor": 8.0, "rope_type": "llama3"}},
        {"flex_attention_mask": "sliding_window"},
    ],
    ids=str,
)
@pytest.mark.parametrize("to", ["hf", "torchtitan", "megatron"])
def test_what_no_other_framework_can_say(
    stated: dict[str, Any], to: str, said: Callable[..., None]
) -> None:
    said(**stated)
    with pytest.raises(ReshardError) as caught:
        reshard.convert("ckpt", "out", to)
    [(key, value)] = stated.items()
    text = str(caught.value)
    assert text.startswith(
        "error[other-facts]: the source's configuration changes what the model computes, and no "
        f"other layout of the model can state that\n  = note: `{key}` is {json.dumps(value)}"
    )
    assert text.endswith("  = help: convert to `universal`, which keeps the configuration")
    assert ("--config DIR" in text) == (key == "rope_scaling")
    reshard.convert("ckpt", "own", "nanotron:tp=2")
    reshard.convert("ckpt", "universal", "universal")


def test_a_given_configuration_says_which_scaling_is_meant(said: Callable[..., None]) -> None:
    plain = config()
    scaling = {"rope_type": "linear", "factor": 2.0}
    said(rope_scaling=scaling)
    Path("given").mkdir()
    Path("given/config.json").write_text(json.dumps({**plain, "rope_scaling": scaling}))
    reshard.convert("ckpt", "other", "hf", config="given")
    found = json.loads(Path("other/config.json").read_text(encoding="utf-8"))
    assert found["rope_scaling"] == scaling


def test_a_given_configuration_does_not_overrule_the_source(said: Callable[..., None]) -> None:
    plain = config()
    Path("given").mkdir()
    Path("given/config.json").write_text(json.dumps({**plain, "rms_norm_eps": 0.5}))
    done = reshard.convert("ckpt", "other", "hf", config="given")
    found = json.loads(Path("other/config.json").read_text(encoding="utf-8"))
    assert found["rms_norm_eps"] == plain["rms_norm_eps"]
    [warning] = [x for x in done.report.warnings if x.code == "model-config-changed"]
    assert warning.notes == (
        f"`rms_norm_eps`: {plain['rms_norm_eps']} is written, the file says 0.5",
    )


def test_a_fact_that_the_target_has_no_word_for_is_named(said: Callable[..., None]) -> None:
    said(hidden_act="gelu")
    done = reshard.convert("ckpt", "out", "megatron")
    [warning] = [x for x in done.report.warnings if x.code == "model-facts-left"]
    assert warning.notes == ('`hidden_act` is "gelu"',)


def test_a_window_becomes_an_argument_of_megatron(said: Callable[..., None]) -> None:
    said(sliding_window_size=9)
    reshard.convert("ckpt", "out", "megatron")
    reshard.convert("out", "universal", "universal")
    manifest = json.loads(Path("universal/manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"]["args"]["window_size"] == [8, 0]


def test_keys_of_a_fork_are_named(said: Callable[..., None]) -> None:
    said(attention_sinks=4, own_flag=False)
    done = reshard.convert("ckpt", "out", "hf")
    [warning] = [x for x in done.report.warnings if x.code == "unknown-arguments"]
    assert warning.render() == (
        "warning[unknown-arguments]: 1 key of the model's configuration is not known to nanotron\n"
        "  = note: `attention_sinks` is 4\n"
        "  = help: check whether it changes what the model computes; it is not converted"
    )


def test_positions_that_are_interleaved(said: Callable[..., None]) -> None:
    said(rope_interleaved=True)
    with pytest.raises(ReshardError) as caught:
        reshard.convert("ckpt", "out", "hf")
    assert "rope_interleaved" in str(caught.value)
