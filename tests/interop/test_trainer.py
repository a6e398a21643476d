"""transformers' Trainer: what it saves is read by name, and it goes on from what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from framework import HERE, run_framework

import reshard
from reshard.storage.safetensors import read_header

pytestmark = [
    pytest.mark.interop,
    pytest.mark.covers("transformers", "read", "write", "resume"),
]

SCRIPT = str(HERE / "trainer_run.py")


def held(path: Path) -> dict[str, bytes]:
    """The tensors of a file."""
    data = path.read_bytes()
    return {
        name: data[item.byte_offset : item.byte_offset + item.nbytes]
        for name, item in read_header(path).tensors.items()
    }


@pytest.mark.parametrize("model", ["llama", "qwen3", "gpt2"])
def test_the_trainer_goes_on(model: str, interop_python: Path, tmp_path: Path) -> None:
    run_framework([str(interop_python), SCRIPT, model, str(tmp_path / "run")], tmp_path)
    made = tmp_path / "run" / "checkpoint-3"
    checkpoint = reshard.open(made)
    for key, data in held(tmp_path / "run" / "truth.safetensors").items():
        state, _, name = key.partition("/")
        assert checkpoint.read(name, state).tobytes() == data, key
    reshard.convert(made, tmp_path / "back", "trainer")
    ends = []
    for out, source in (("a", made), ("b", tmp_path / "back")):
        command = [str(interop_python), SCRIPT, model, str(tmp_path / out), str(source)]
        run_framework(command, tmp_path)
        ends.append(held(tmp_path / out / "end.safetensors"))
    assert ends[0] == ends[1]
