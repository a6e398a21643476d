"""Steps whose model and optimizer are checkpoints of their own, and what wraps a model in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reshard
import safetensors_files
import torch_files
from formats.dcp.dcp_forge import Forge, counted
from reshard.errors import ReshardError

Names = tuple[str, ...]
NAMES: Names = ("embed.weight", "norm.weight")


def _optimizer(folder: Path, *above: str, prefix: str = "", factor: float = 1.0) -> None:
    forge = Forge(folder)
    for name in NAMES:
        path = (*above, "state", f"{prefix}{name}", "exp_avg")
        forge.tensor(".".join(path), counted(4, 3) * np.float32(factor), path=path)
    for key, value in (("lr", 0.5), ("params", [f"{prefix}{name}" for name in NAMES])):
        path = (*above, "param_groups", "0", key)
        forge.object(".".join(path), value, path=(*above, "param_groups", 0, key))
    forge.write()


def _model(folder: Path, *above: str, prefix: str = "") -> None:
    forge = Forge(folder)
    for name in NAMES:
        path = (*above, f"{prefix}{name}")
        forge.tensor(".".join(path), counted(4, 3) * 2, path=path)
    forge.write()


def _safetensors(folder: Path, prefix: str = "") -> None:
    folder.mkdir(parents=True)
    whole = ("F32", (4, 3), (counted(4, 3) * 2).tobytes())
    safetensors_files.save(
        folder / "model.safetensors", {f"{prefix}{name}": whole for name in NAMES}
    )


def _is_read(path: Path, step: str | None = None, factor: float = 1.0) -> reshard.Checkpoint:
    found = reshard.open(path, step=step)
    assert found.states == ("param", "exp_avg")
    for name in NAMES:
        assert np.array_equal(found.read(name), counted(4, 3) * 2)
        assert np.array_equal(found.read(name, "exp_avg"), counted(4, 3) * np.float32(factor))
    [group] = found.training.param_groups
    assert group == {"lr": 0.5, "params": list(NAMES)}
    return found


@pytest.mark.parametrize("optimizer", ["optim", "optimizer"])
def test_weights_of_safetensors_and_a_distributed_optimizer_are_one_step(
    optimizer: str, tmp_path: Path
) -> None:
    for step, factor in ((3, 3.0), (4, 4.0)):
        folder = tmp_path / f"epoch_0_step_{step}"
        _safetensors(folder / "model")
        _optimizer(folder / optimizer, "optim", factor=factor)
    config = tmp_path / "epoch_0_step_3" / "model" / "consolidated" / "config.json"
    config.parent.mkdir()
    config.write_text('{"model_type": "llama"}')
    (tmp_path / "LATEST").symlink_to("epoch_0_step_3")
    found = _is_read(tmp_path, factor=3.0)
    assert found.inspect().left == ()
    _is_read(tmp_path, step="4", factor=4.0)
    _is_read(tmp_path / "epoch_0_step_4", factor=4.0)
    (tmp_path / "LATEST").unlink()
    _is_read(tmp_path, factor=4.0)
    out = tmp_path.parent / f"{tmp_path.name}-out"
    reshard.convert(tmp_path, out, "dcp:dp=2")
    assert reshard.verify(tmp_path, out).ok
    faults = reshard.verify(tmp_path)
    assert faults.ok
    assert "model/model.safetensors" in faults.to_text()


def test_an_adapter_whose_optimizer_has_names_without_the_prefix(tmp_path: Path) -> None:
    _safetensors(tmp_path / "model", prefix="base_model.model.")
    (tmp_path / "model" / "model.safetensors").rename(
        tmp_path / "model" / "adapter_model.safetensors"
    )
    (tmp_path / "model" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    _optimizer(tmp_path / "optim", "optim")
    found = reshard.open(tmp_path)
    for name in NAMES:
        assert np.array_equal(found.read(f"base_model.model.{name}", "exp_avg"), counted(4, 3))


def test_a_distributed_model_and_a_distributed_optimizer_are_one_step(tmp_path: Path) -> None:
    """The tracker has the name of Megatron's, and says which step is the last."""
    for step, factor in ((3, 3.0), (4, 4.0)):
        folder = tmp_path / f"iter_{step:07d}"
        _model(folder / "model", "model_state", "model")
        _optimizer(folder / "optimizer", "optim_state", "optim", factor=factor)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    _is_read(tmp_path, factor=3.0)
    _is_read(tmp_path, step="4", factor=4.0)
    _is_read(tmp_path / "iter_0000004", factor=4.0)
    assert np.array_equal(
        reshard.open(tmp_path / "iter_0000004" / "model").read(NAMES[0]), counted(4, 3) * 2
    )


def test_a_model_of_names_that_begin_like_its_dict(tmp_path: Path) -> None:
    """What is all of a folder's names is no part of them; what is of some of them, is."""
    forge = Forge(tmp_path / "model")
    for path in (("model", "w"), ("head",)):
        forge.tensor(".".join(path), counted(2), path=path)
    forge.write()
    _optimizer(tmp_path / "optimizer", "optim")
    assert {"model.w", "head"} <= {*reshard.open(tmp_path).tensors}


@pytest.mark.parametrize("model", [_safetensors, _model])
def test_a_part_that_was_not_written_to_the_end(model: object, tmp_path: Path) -> None:
    assert callable(model)
    model(tmp_path / "step-5" / "model")
    (tmp_path / "step-5" / "optim").mkdir()
    (tmp_path / "step-5" / "optim" / "__0_0.distcp").touch()
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "step-5")
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "error[incomplete-dcp]: step-5/optim was not written to the end\n"
        "  = note: there are `.distcp` files, but no `.metadata`, which is written last\n"
        "  = help: go back to an earlier checkpoint"
    )
    _safetensors(tmp_path / "step-4" / "model")
    _optimizer(tmp_path / "step-4" / "optim", "optim")
    [oddity] = _is_read(tmp_path).inspect().oddities
    assert oddity.headline.endswith("step-5 was not written to the end, so step 4 is taken")


def test_two_folders_of_one_optimizer_are_not_joined(tmp_path: Path) -> None:
    _model(tmp_path / "model")
    for name in ("optim", "optimizer"):
        _optimizer(tmp_path / name, "optim")
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path)
    assert str(caught.value).replace(f"{tmp_path}", "SRC") == (
        "error[several-models]: SRC holds several models or optimizers\n"
        "  = note: folders: `model`, `optim`, `optimizer`\n"
        "  = help: give one of these folders"
    )


def test_the_attribute_of_a_lightning_module_is_no_part_of_the_names(tmp_path: Path) -> None:
    folder = tmp_path / "epoch=0-step=7.ckpt"
    forge = Forge(folder)
    for name in NAMES:
        path: tuple[str, ...] = ("model", f"net.{name}")
        forge.tensor(".".join(path), counted(4, 3) * 2, path=path)
        path = ("optimizer_0", "state", f"net.{name}", "exp_avg")
        forge.tensor(".".join(path), counted(4, 3), path=path)
    for key, value in (("lr", 0.5), ("params", [f"net.{name}" for name in NAMES])):
        forge.object(f"optimizer_0.{key}", value, path=("optimizer_0", "param_groups", 0, key))
    forge.write()
    meta = {"global_step": 7, "pytorch-lightning_version": "2.6.1", "lr_schedulers": [{"x": 1}]}
    (folder / "meta.pt").write_bytes(torch_files.saved(meta))
    found = _is_read(tmp_path)
    assert found.training.iteration == 7
    assert found.training.state == {"lr_scheduler": {"x": 1}}
    assert found.inspect().side_files == ("meta.pt",)
    assert found.inspect().left == ()
    reshard.convert(folder, tmp_path / "out", "dcp")
    assert reshard.verify(folder, tmp_path / "out").ok
    (folder / "meta.pt").write_bytes(torch_files.saved({"global_step": 7}))
    assert "net.embed.weight" in reshard.open(folder).tensors


def test_a_lightning_module_with_more_than_its_model_keeps_all_names(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    for name in ("net.w", "temperature"):
        forge.tensor(f"state_dict.{name}", counted(2), path=("state_dict", name))
    forge.write()
    meta = {"pytorch-lightning_version": "2.6.1"}
    (tmp_path / "ckpt" / "meta.pt").write_bytes(torch_files.saved(meta))
    assert {*reshard.open(tmp_path / "ckpt").tensors} == {"net.w", "temperature"}


def _numbered(folder: Path, *shapes: tuple[int, ...], names: Names) -> Path:
    forge = Forge(folder)
    for name, shape in zip(names, shapes, strict=True):
        forge.tensor(f"model.{name}", counted(*shape), path=("model", name))
    statistics = ("running_mean", "running_var")
    for name in statistics:
        forge.tensor(f"model.bn.{name}", counted(3), path=("model", f"bn.{name}"))
    batches = np.array(5, "int64")
    forge.tensor("model.bn.num_batches_tracked", batches, path=("model", "bn.num_batches_tracked"))
    for number, shape in enumerate(shapes):
        path = ("optimizer", "state", number, "exp_avg")
        forge.tensor(f"optimizer.state.{number}.exp_avg", counted(*shape) + number, path=path)
    group = ("optimizer", "param_groups", 0, "params")
    forge.object("optimizer.param_groups.0.params", [*range(len(shapes))], path=group)
    return forge.write()


def test_statistics_of_batches_are_no_parameters_that_an_optimizer_counts(tmp_path: Path) -> None:
    names = ("conv.weight", "bn.weight", "bn.bias")
    folder = _numbered(tmp_path / "ckpt", (4, 3), (3,), (3,), names=names)
    found = reshard.open(folder)
    for number, name in enumerate(names):
        assert np.array_equal(
            found.read(name, "exp_avg"), counted(*found.read(name).shape) + number
        )
    roles = {item.name: item.role for item in found.inspect().tensors}
    assert {name for name, role in roles.items() if role == "parameter"} == {*names}
    assert {*roles.values()} == {"parameter", "buffer"}


def test_weights_of_states_that_have_no_names_are_read(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "ckpt")
    for name in ("b", "a"):
        forge.tensor(f"model.{name}", counted(2), path=("model", name))
    for number in (0, 1):
        path = ("optim", "state", number, "exp_avg")
        forge.tensor(f"optim.state.{number}.exp_avg", counted(2), path=path)
        group = ("optim", "param_groups", number, "params")
        forge.object(f"optim.param_groups.{number}.params", [number], path=group)
    folder = forge.write()
    facts = reshard.inspect(folder)
    assert {item.state for item in facts.states} == {"param"}
    assert [item.code for item in facts.oddities] == ["ambiguous-optimizer-ids"]
    with pytest.raises(ReshardError, match="ambiguous-optimizer-ids"):
        reshard.convert(folder, tmp_path / "out", "universal")
    reshard.convert(folder, tmp_path / "out", "dcp", states="weights")
    assert np.array_equal(reshard.open(tmp_path / "out").read("a"), counted(2))
