"""Checkpoints of Megatron-Bridge and NeMo, whose sizes stand in files beside the tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.storage.yaml_file import load_yaml
from torch_files import loaded, saved

Fixture = Callable[[str], Path]
KEYS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "ffn_hidden_size",
    "kv_channels",
    "normalization",
    "vocab_size",
    "make_vocab_size_divisible_by",
)
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 20,
    "vocab_size": 38,
}


@pytest.fixture
def without_arguments(
    fixture_checkpoint: Fixture, tmp_path: Path
) -> Callable[[str], tuple[Path, str]]:
    """A function that copies the tensors to a folder; it gives that, and the sizes as YAML."""

    def copied(name: str) -> tuple[Path, str]:
        folder = tmp_path / name
        [step] = (fixture_checkpoint("megatron_dist_untied") / "ckpt").glob("iter_*")
        shutil.copytree(step, folder)
        root = loaded(folder / "common.pt")
        args = root.pop("args").attributes
        (folder / "common.pt").write_bytes(saved(root, "common"))
        lines = [f"  {key}: {args[key]}" for key in KEYS]
        lines += [
            "  gated_linear_unit: true",
            "  rotary_base: 10000",
            "  layernorm_epsilon: 1.0e-6",
        ]
        return folder, "\n".join(lines)

    return copied


def test_megatron_bridge(
    without_arguments: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    folder, lines = without_arguments("run/iter_0000003")
    text = f"model:\n  _target_: x.LlamaModelProvider\n{lines}\ncheckpoint:\n  a: 1\n"
    (folder / "run_config.yaml").write_text(text, encoding="utf-8")
    (folder.parent / "latest_train_state.pt").write_bytes(saved({}, "x"))
    (folder.parent / "latest_checkpointed_iteration.txt").write_text("3", encoding="utf-8")
    found = reshard.inspect(folder.parent)
    assert found.side_files == ("latest_train_state.pt", "run_config.yaml")
    reshard.convert(folder.parent, tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text(encoding="utf-8"))
    wanted = SIZES | {"rope_theta": 10000, "rms_norm_eps": 1e-6}
    assert {key: config.get(key) for key in wanted} == wanted
    assert reshard.inspect(tmp_path / "hf").states[0].tensors == 21


def test_nemo(without_arguments: Callable[[str], tuple[Path, str]], tmp_path: Path) -> None:
    folder, lines = without_arguments("nemo/step=3/weights")
    context = folder.parent / "context"
    context.mkdir()
    text = f"_target_: x.LlamaModel\nconfig:\n  _target_: x.Llama3Config8B\n{lines}\n"
    (context / "model.yaml").write_text(text, encoding="utf-8")
    (context / "io.json").write_text("{}", encoding="utf-8")
    for given in (folder.parent, folder):
        found = reshard.inspect(given)
        assert found.side_files == ("context/io.json", "context/model.yaml")
    reshard.convert(folder.parent, tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text(encoding="utf-8"))
    assert {key: config.get(key) for key in SIZES} == SIZES


def test_nemo_without_yaml(
    without_arguments: Callable[[str], tuple[Path, str]], tmp_path: Path
) -> None:
    folder, lines = without_arguments("nemo/step=3/weights")
    model = load_yaml(lines.encode())
    assert isinstance(model, dict)
    items: list[object] = [
        [f"Attr(name='{key}')", {"type": "leaf", "value": value, "paths": [f"<root>.model.{key}"]}]
        for key, value in model.items()
    ]
    function = {"type": "pyref", "module": "torch.nn.functional", "name": "silu"}
    items += [["Attr(name='activation_func')", function], "odd", ["Attr(name='a')", 3]]
    objects = {
        "tokenizer_1": {"items": [], "paths": ["<root>.model.tokenizer"]},
        "config_1": {"items": items, "paths": ["<root>.model.config", "<root>.extra.config"]},
        "odd": 3,
    }
    text = json.dumps({"root": {"type": "ref", "key": "x"}, "objects": objects})
    (folder.parent / "context").mkdir()
    (folder.parent / "context/io.json").write_text(text, encoding="utf-8")
    assert reshard.inspect(folder.parent).side_files == ("context/io.json",)
    reshard.convert(folder.parent, tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text(encoding="utf-8"))
    assert {key: config.get(key) for key in SIZES} == SIZES


def test_yaml_makes_nothing() -> None:
    text = b"a: !!python/object/apply:os.system [exit 1]\nb: !x {c: 1}\n"
    assert load_yaml(text) == {"a": ["exit 1"], "b": {"c": 1}}
    with pytest.raises(ValueError, match="while"):
        load_yaml(b"a: [")
    with pytest.raises(ValueError, match="recursion"):
        load_yaml(b"[" * 100_000)
