"""The common state of a distributed checkpoint: a file up to core 0.16, an object since 0.17."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import namespace, save
from test_megatron_errors import message

import reshard

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dcp"))

from dcp_forge import Forge

SHAPES = {
    "embedding.word_embeddings.weight": (9, 4),
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (2, 4),
    "decoder.layers.self_attention.linear_qkv.weight": (2, 12, 4),
    "decoder.layers.self_attention.linear_proj.weight": (2, 4, 4),
    "decoder.final_layernorm.weight": (4,),
}
STATES = ("param", "exp_avg", "exp_avg_sq")


def whole() -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    """Every state; every element has its own number, and a master is its weight."""
    out = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        for index, state in enumerate(STATES):
            first = 100 * (3 * number + index)
            value = (first + np.arange(np.prod(shape))).astype(np.float32).reshape(shape)
            out[name, "master" if state == "param" else state] = value
            if state == "param":
                out[name, state] = value
    return out


def common(iteration: int = 4) -> dict[str, Any]:
    """What all ranks have in common."""
    groups = [{"wd_mult": wd, "lr": 0.5, "step": 4} for wd in (1.0, 0.0)]
    return {
        "args": namespace(num_layers=2, hidden_size=4, num_attention_heads=2),
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "optimizer": {"optimizer": {"param_groups": groups}},
        "opt_param_scheduler": {"num_steps": 40},
        "content_metadata": {"distrib_optim_sharding_type": "fully_reshardable"},
    }


def write(root: Path, places: str, beside: dict[str, Any] | None = None) -> Path:
    """A folder with its common state as a `file`, as an `object`, or as `both`."""
    folder = root / "iter_0000004"
    forge = Forge(folder)
    for (name, state), value in whole().items():
        prefix = {"param": "", "master": "optimizer.state.param."}
        forge.tensor(prefix.get(state, f"optimizer.state.{state}.") + name, value)
    if places in ("object", "both"):
        forge.object("common_state/shard_0_1", [common()])
    forge.write()
    if places in ("file", "both"):
        save(folder / "common.pt", common() if beside is None else beside)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (root / "latest_checkpointed_iteration.txt").write_text("4")
    return root


@pytest.mark.parametrize("places", ["file", "object", "both"])
def test_the_common_state_wherever_it_is(places: str, tmp_path: Path) -> None:
    found = reshard.open(write(tmp_path, places))
    for (name, state), value in whole().items():
        assert np.array_equal(np.asarray(found.read(name, state)), value), (name, state)
    name = "decoder.layers.self_attention.linear_qkv.weight"
    assert float(np.asarray(found.read(name, "step"))) == 4.0
    assert found.training.iteration == 4
    assert [group["lr"] for group in found.training.param_groups] == [0.5, 0.5]
    assert found.training.state == {"lr_scheduler": {"num_steps": 40}}
    assert not reshard.inspect(tmp_path).left


def test_both_forms_are_one_checkpoint(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", "file"), write(tmp_path / "new", "object")
    for form in (old, new):
        reshard.convert(form, tmp_path / f"{form.name}-u", "universal")
    assert reshard.verify(tmp_path / "old-u", tmp_path / "new-u").ok
    assert reshard.verify(old, new).ok


def test_a_common_file_of_another_save_is_not_used(tmp_path: Path) -> None:
    write(tmp_path, "both", common(iteration=2))
    found = reshard.inspect(tmp_path)
    assert found.training.iteration == 4
    assert [(item.file, item.why) for item in found.left] == [
        ("common.pt", "it says other things than the common state that was saved with the tensors")
    ]


def test_a_distributed_checkpoint_without_its_common_state(tmp_path: Path) -> None:
    write(tmp_path, "neither")
    assert message(tmp_path, tmp_path) == [
        "error[incomplete-megatron]: .../iter_0000004 lacks the common state: arguments, "
        "iteration, and param groups",
        "  = note: neither a file `common.pt`, nor an object `common_state` in `.metadata`",
        "  = help: copy the whole folder",
    ]


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize(
    ("places", "part"), [("file", "common.pt"), ("object", "common_state/shard_0_1")]
)
def test_a_distributed_checkpoint_without_its_last_file(
    places: str, part: str, tracked: bool, tmp_path: Path
) -> None:
    """The buffers and states of its optimizer are no parameters of another format."""
    folder = write(tmp_path, places) / "iter_0000004"
    (folder / "metadata.json").unlink()
    if not tracked:
        (tmp_path / "latest_checkpointed_iteration.txt").unlink()
    assert message(tmp_path if tracked else folder, tmp_path) == [
        "error[incomplete-megatron]: .../iter_0000004 is an incomplete Megatron checkpoint",
        f"  = note: it has `{part}`, as the form `torch_dist`, and no `metadata.json`",
        "  = help: `metadata.json` is written last: without it the save did not finish",
    ]
