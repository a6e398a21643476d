"""Real distributed checkpoints hold what the running model and optimizer held."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard import Checkpoint

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
REFUSED = ("dcp_safetensors_dp2", "dcp_fsdp1_local_dp2")
CASES = sorted({p.parent.name for p in FIXTURES.glob("dcp_*/case.json")}.difference(REFUSED))

Find = Callable[[str], Path]


@pytest.fixture(scope="module")
def opened(fixture_checkpoint: Find) -> Callable[[str], Checkpoint]:
    """A function from a case to its checkpoint, opened once."""
    known: dict[str, Checkpoint] = {}

    def find(name: str) -> Checkpoint:
        if name not in known:
            known[name] = reshard.open(fixture_checkpoint(name) / "ckpt")
        return known[name]

    return find


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_equal_to_the_truth(
    name: str, opened: Callable[[str], Checkpoint], fixture_checkpoint: Find
) -> None:
    checkpoint = opened(name)
    truth = _truth(fixture_checkpoint(name) / "truth.safetensors")
    for (state, parameter), (shape, data) in truth.items():
        array = checkpoint.read(parameter, state)
        assert array.shape == shape
        assert array.tobytes() == data, f"{state} of {parameter}"
    stored = {
        (state, parameter)
        for parameter, info in checkpoint.tensors.items()
        for state in info.dtypes
        if state != "extra"
    }
    assert stored == set(truth)
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if "tied" in name else {}
    assert checkpoint.aliases == tied


@pytest.mark.parametrize("name", CASES)
def test_groups_and_steps_are_known(name: str, opened: Callable[[str], Checkpoint]) -> None:
    checkpoint = opened(name)
    training = checkpoint.training
    assert training.iteration == 2
    named = [group["params"] for group in training.param_groups]
    trained = [n for n, info in checkpoint.tensors.items() if "exp_avg" in info.dtypes]
    assert sorted(p for params in named for p in params) == sorted(trained)  # type: ignore[attr-defined]
    for group in training.param_groups:
        assert (group["lr"], group["betas"]) == (0.01, {"$tuple": [0.9, 0.95]})
    if "odd" not in name:
        assert [group["weight_decay"] for group in training.param_groups] == [0.1, 0.0]


def test_weight_decay_follows_the_matrices(opened: Callable[[str], Checkpoint]) -> None:
    for name in ("dcp_dp2", "dcp_dp2_flat", "dcp_dp2_numbered", "dcp_titan_dp2"):
        checkpoint = opened(name)
        matrices, vectors = (group["params"] for group in checkpoint.training.param_groups)
        shapes = {n: info.shape for n, info in checkpoint.tensors.items()}
        assert all(len(shapes[n]) == 2 for n in matrices)  # type: ignore[attr-defined]
        assert all(len(shapes[n]) == 1 for n in vectors)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "model", "optimizer", "flattened", "kind"),
    [
        ("dcp_dp2", ["model"], ["optim"], False, "dcp"),
        ("dcp_dp2_flat", ["model"], ["optim"], True, "dcp"),
        ("dcp_dp2_numbered", ["model"], ["optimizer"], False, "dcp"),
        ("dcp_dp2_app", ["app", "model"], ["app", "optim"], False, "dcp"),
        ("dcp_titan_dp2", [], ["optimizer"], True, "dcp"),
        ("dcp_accelerate_dp2", ["model"], ["optimizer"], False, "accelerate"),
    ],
)
def test_how_the_state_dict_was_put_together_is_kept(
    name: str,
    model: list[str],
    optimizer: list[str],
    flattened: bool,
    kind: str,
    opened: Callable[[str], Checkpoint],
) -> None:
    framework = opened(name).training.framework
    assert framework is not None
    assert framework["form"] == {
        "kind": kind,
        "flattened": flattened,
        "model": model,
        "optimizer": optimizer,
    }


def test_what_is_no_parameter_is_kept(opened: Callable[[str], Checkpoint]) -> None:
    titan = opened("dcp_titan_dp2")
    assert titan.read("train_state.ntokens_seen", "extra") == 64
    framework = titan.training.framework
    assert framework is not None
    objects = framework["objects"]
    assert isinstance(objects, dict)
    assert set(objects) == {
        "dataloader.dp_rank_0",
        "dataloader.dp_rank_1",
        "dataloader.world_size",
        "lr_scheduler.last_epoch",
    }
    assert "$bytes" in objects["dataloader.dp_rank_0"]
    assert titan.training.state == {"lr_scheduler": {"last_epoch": 2}}
    accelerate = opened("dcp_accelerate_dp2")
    assert accelerate.training.state == {"lr_scheduler": {"last_epoch": 2}}
    assert accelerate.inspect().side_files == ("scheduler.bin",)


def test_buffers_are_told_from_parameters(opened: Callable[[str], Checkpoint]) -> None:
    odd = opened("dcp_dp4_odd")
    roles = {item.name: item.role for item in odd.inspect().tensors}
    assert roles["seen"] == roles["flags"] == "buffer"
    assert roles["turned"] == roles["nothing"] == roles["brief"] == "frozen"
    assert roles["few.weight"] == "parameter"


def test_copies_of_ranks_that_did_not_talk_are_compared(
    opened: Callable[[str], Checkpoint],
) -> None:
    alone = opened("dcp_dp2_alone")
    assert alone.mesh == {"copy": 2}
    # Each rank wrote all steps, and its own half of everything else.
    assert alone.inspect().proof.copies == 21
    assert opened("dcp_dp2").inspect().proof.copies == 0


def _truth(path: Path) -> dict[tuple[str, str], tuple[tuple[int, ...], bytes]]:
    """Shape and bytes by state and name."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    out = {}
    for key, item in header.items():
        state, _, name = key.partition("/")
        if state != "__metadata__":
            start, stop = item["data_offsets"]
            shape, raw = tuple(item["shape"]), data[8 + size + start : 8 + size + stop]
            out["param" if state == "buffer" else state, name] = (shape, raw)
    return out
