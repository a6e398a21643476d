"""Adapters of PEFT: kept as what they are, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reshard
from reshard.dtypes import DType
from reshard.storage.safetensors import layout_header
from torch_files import Tensor, saved

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
NAMES = (f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight")
CONFIG = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "toy"}


def _adapter(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    head, _, _ = layout_header(dict.fromkeys(NAMES, (DType.F32, (2, 4))), {"format": "pt"})
    data = np.arange(16, dtype="<f4").tobytes()
    (folder / "adapter_model.safetensors").write_bytes(head + data)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def _numbers(folder: Path) -> list[list[float]]:
    checkpoint = reshard.open(folder)
    return [checkpoint.read(name).ravel().tolist() for name in NAMES]


def test_an_adapter_stays_an_adapter(tmp_path: Path) -> None:
    source = _adapter(tmp_path / "adapter")
    done = reshard.convert(source, tmp_path / "hf", "hf")
    assert sorted(item.name for item in (tmp_path / "hf").iterdir()) == [
        ".reshard-files.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert done.next_step == (
        f"PEFT loads it with `PeftModel.from_pretrained(base_model, '{tmp_path / 'hf'}')`"
    )
    config = (source / "adapter_config.json").read_bytes()
    assert (tmp_path / "hf" / "adapter_config.json").read_bytes() == config
    assert _numbers(tmp_path / "hf") == _numbers(source)


def test_an_adapter_through_universal(tmp_path: Path) -> None:
    source = _adapter(tmp_path / "adapter")
    reshard.convert(source, tmp_path / "universal", "universal")
    reshard.convert(tmp_path / "universal", tmp_path / "hf", "hf")
    assert (tmp_path / "hf" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "hf" / "adapter_config.json").is_file()
    assert _numbers(tmp_path / "hf") == _numbers(source)


def test_a_torch_file_of_an_adapter(tmp_path: Path) -> None:
    source = tmp_path / "adapter"
    source.mkdir()
    value = Tensor(DType.F32, (2, 4), np.arange(8, dtype="<f4").tobytes())
    (source / "adapter_model.bin").write_bytes(saved(dict.fromkeys(NAMES, value)))
    (source / "adapter_config.json").write_text(json.dumps(CONFIG))
    reshard.convert(source, tmp_path / "hf", "hf")
    assert (tmp_path / "hf" / "adapter_model.safetensors").is_file()
    assert _numbers(tmp_path / "hf") == _numbers(source)


@pytest.mark.parametrize("target", ["megatron", "torchtitan", "nanotron"])
def test_targets_of_whole_models_refuse_it(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _adapter(Path("adapter"))
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.convert("adapter", "out", target)
    (fault,) = caught.value.diagnostics
    assert fault.render().replace(str(tmp_path) + "/", "") == (
        "error[adapter-weights]: adapter is an adapter (LORA) of `toy`, not a complete model\n"
        f"  = note: the target stores complete models, with the tensor names of layout `{target}`\n"
        "  = note: its `adapter_config.json` states how to merge it into its base model; reshard "
        "does not merge adapters\n"
        "  = help: merge it into its base model with PEFT (`merge_and_unload`), and convert "
        "the result\n"
        "  = help: `--to hf` and `--to universal` keep the adapter unchanged"
    )
    assert not Path("out").exists()
