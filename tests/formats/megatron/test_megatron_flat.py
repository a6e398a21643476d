"""Flat buckets of distributed checkpoints, made by Megatron's rule from whole tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import image_bytes, namespace, save
from test_megatron_errors import message

import reshard
from reshard.formats.megatron.read import read
from reshard.storage.inert import Global
from whole_tensors import arrange, wholes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dcp"))

from dcp_forge import METADATA, Forge, made

KIND = Global("torch", "float32")
STATES = ("param", "exp_avg", "exp_avg_sq")
LAYER = {"input_layernorm.weight": (5,), "mlp.linear_fc2.weight": (3, 7)}
OUTSIDE = {"embedding.word_embeddings.weight": (9, 3), "decoder.final_layernorm.weight": (3,)}
GROUPS = [{"wd_mult": 1.0, "step": 4, "lr": 0.5}, {"wd_mult": 0.0, "step": 4, "lr": 0.5}]


def model(layers: int) -> dict[str, np.ndarray[Any, Any]]:
    """Whole tensors, layers stacked; every element has its own number."""
    shapes = dict(list(OUTSIDE.items())[:1])
    shapes |= {f"decoder.layers.{name}": (layers, *shape) for name, shape in LAYER.items()}
    shapes |= dict(list(OUTSIDE.items())[1:])
    out = {}
    for number, (name, shape) in enumerate(shapes.items()):
        size = int(np.prod(shape))
        out[name] = (1000.0 * number + np.arange(size)).astype(np.float32).reshape(shape)
    return out


def state_of(value: Any, state: str) -> Any:
    """A state's own numbers; a master is its weight."""
    return value if state == "param" else value + {"exp_avg": 0.25, "exp_avg_sq": 0.5}[state]


def registered(
    whole: dict[str, Any], layers: range, *, first: bool, last: bool
) -> list[np.ndarray[Any, Any]]:
    """The parameters of one chunk, in the order of the module."""
    out = [whole["embedding.word_embeddings.weight"]] if first else []
    for layer in layers:
        out += [whole[f"decoder.layers.{name}"][layer] for name in LAYER]
    return [*out, *([whole["decoder.final_layernorm.weight"]] if last else [])]


def buffer(parameters: list[Any], state: str) -> np.ndarray[Any, Any]:
    """One bucket: parameters from the last to the first, each at a multiple of 64; a gap has 7s."""
    flat: list[float] = []
    for value in reversed(parameters):
        flat += [7.0] * (-len(flat) % 64)
        flat += state_of(value, state).ravel().tolist()
    return np.array(flat, np.float32)


def checkpoint(root: Path, stages: list[list[int]], form: str) -> dict[str, Any]:
    """A folder of a run; `stages` has the layers of every chunk of every stage."""
    pp, vpp = len(stages), len(stages[0])
    layers = sum(map(sum, stages))
    whole = model(layers)
    folder = Forge(root)
    for name, value in whole.items():
        boxes = None
        if ".layers." in name:
            rest = value.shape[1:]
            boxes = [((i, *(0,) * len(rest)), (1, *rest)) for i in range(layers)]
        folder.tensor(name, value, boxes)
    begins, at = {}, 0
    for chunk in range(vpp):
        for stage in range(pp):
            begins[stage, chunk] = at
            at += stages[stage][chunk]
    for stage in range(pp):
        prefix = f"optimizer.distributed.dp_group_idx_{stage}"
        lengths: list[Any] = []
        gathered: dict[int, Any] = {}
        for chunk in range(vpp):
            begin = begins[stage, chunk]
            mine = registered(
                whole,
                range(begin, begin + stages[stage][chunk]),
                first=(stage, chunk) == (0, 0),
                last=(stage, chunk) == (pp - 1, vpp - 1),
            )
            flats = {state: buffer(mine, state) for state in STATES}
            size = len(flats["param"])
            lengths.append({(KIND, KIND): [size]})
            gathered[chunk] = {(KIND, KIND): {**flats, "numel_unpadded": size}}
            key = f"{prefix}.gbuf_idx_{chunk}.dtype_(torch.float32, torch.float32).bucket_idx_0"
            for state, flat in flats.items():
                if form == "gathered":
                    continue
                tail = -size % 128 if form == "padded" else 0
                stored = np.concatenate([flat, np.zeros(tail, np.float32)])
                half = len(stored) // 3  # ranks cut where they will
                boxes = [((0,), (half,)), ((half,), (len(stored) - half,))]
                folder.tensor(f"{key}.{state}", stored, boxes)
        if form == "gathered":
            blob = image_bytes([{"buckets_coalesced": True, **gathered}])
            name = f"{prefix}.param_state/shard_0_1"
            place = made(METADATA, "MetadataIndex", fqn=name)
            folder._place(place, blob, "__9_0.distcp", {})
            folder.entries[name] = made(METADATA, "BytesStorageMetadata")
        else:
            folder.object(f"{prefix}.per_bucket_numel_unpadded/shard_0_1", [lengths])
        folder.object(f"{prefix}.optimizer/shard_0_1", [{"optimizer": {"param_groups": GROUPS}}])
    folder.write()
    args = {
        "num_layers": layers,
        "pipeline_model_parallel_size": pp,
        "untie_embeddings_and_output_weights": True,
        "make_vocab_size_divisible_by": 1,
    }
    save(root / "common.pt", {"args": namespace(**args), "iteration": 4, "checkpoint_version": 3.0})
    (root / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    return whole


@pytest.mark.parametrize("form", ["reshardable", "padded", "gathered"])
@pytest.mark.parametrize(
    "stages", [[[2]], [[1], [2]], [[3], [1]], [[1, 1], [1, 1]], [[2, 1], [1, 3]]], ids=str
)
def test_buckets_of_every_pipeline(stages: list[list[int]], form: str, tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, stages, form)
    catalog = read(tmp_path)
    assert not catalog.withheld
    found = wholes(arrange(catalog))
    for name, value in whole.items():
        for state in STATES:
            kept = found[name, "master" if state == "param" else state]
            assert np.array_equal(kept, state_of(value, state)), (name, state)
        assert float(found[name, "step"]) == 4.0
    groups = [group["params"] for group in catalog.training.param_groups]
    assert groups == [
        ["embedding.word_embeddings.weight", "decoder.layers.mlp.linear_fc2.weight"],
        ["decoder.layers.input_layernorm.weight", "decoder.final_layernorm.weight"],
    ]


def test_buckets_that_do_not_round_to_the_weights(tmp_path: Path) -> None:
    checkpoint(tmp_path, [[2]], "reshardable")
    path = tmp_path / "__0_1.distcp"
    data = bytearray(path.read_bytes())
    at = data.rfind(np.float32(2000.0).tobytes())  # the master of the first fc2, in the last bucket
    assert at > 0
    data[at + 3] ^= 0x40
    path.write_bytes(data)
    lines = message(tmp_path, tmp_path)
    assert lines[0] == (
        "error[buffer-mismatch]: the positions of the parameters in the optimizer's buckets of "
        "... cannot be determined"
    )
    assert lines[1:] == [
        "  = note: group 0 of 347 elements fits no known order",
        "  = note: positions count only where every master weight rounds to its weight",
        "  = help: keep the weights with `--states weights`",
    ]


Boxes = list[tuple[tuple[int, ...], tuple[int, ...]]]


def run(
    root: Path,
    tensors: dict[str, tuple[np.ndarray[Any, Any], Boxes | None]],
    groups: list[list[list[np.ndarray[Any, Any]]]],
    **args: object,
) -> dict[str, np.ndarray[Any, Any]]:
    """A folder of any run.

    Args:  tensors: by name, with the boxes that ranks wrote.
           groups: for each model-parallel rank its buckets, each of parameters in their order.
    """
    folder = Forge(root)
    for name, (value, boxes) in tensors.items():
        folder.tensor(name, value, boxes)
    for group, buckets in enumerate(groups):
        prefix = f"optimizer.distributed.dp_group_idx_{group}"
        for index, parameters in enumerate(buckets):
            key = f"{prefix}.gbuf_idx_0.dtype_(torch.float32, torch.float32).bucket_idx_{index}"
            for state in STATES:
                folder.tensor(f"{key}.{state}", buffer(parameters, state))
        lengths = [len(buffer(parameters, "param")) for parameters in buckets]
        name = f"{prefix}.per_bucket_numel_unpadded/shard_0_1"
        folder.object(name, [[{(KIND, KIND): lengths}]])
        folder.object(f"{prefix}.optimizer/shard_0_1", [{"optimizer": {"param_groups": GROUPS}}])
    folder.write()
    stated = {"untie_embeddings_and_output_weights": True, "make_vocab_size_divisible_by": 1}
    common = {"args": namespace(**{**stated, **args}), "iteration": 4, "checkpoint_version": 3.0}
    save(root / "common.pt", common)
    (root / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    return {name: value for name, (value, _) in tensors.items()}


def counted(number: int, *shape: int) -> np.ndarray[Any, Any]:
    """An array whose elements are of no other number."""
    return (1000.0 * number + np.arange(np.prod(shape))).astype(np.float32).reshape(shape)


def assert_states(root: Path, whole: dict[str, np.ndarray[Any, Any]]) -> None:
    """Every state of every tensor."""
    found = reshard.open(root)
    for name, value in whole.items():
        for state in STATES:
            kept = np.asarray(found.read(name, "master" if state == "param" else state))
            assert np.array_equal(kept, state_of(value, state)), (name, state)


def test_a_stage_that_predicts_several_tokens_has_a_copy_of_the_embedding(tmp_path: Path) -> None:
    embedding, layers, norm = counted(0, 9, 4), counted(1, 2, 4, 5), counted(2, 4)
    extra, output = counted(3, 4, 8), counted(4, 9, 4)
    whole = run(
        tmp_path,
        {
            "embedding.word_embeddings.weight": (embedding, None),
            "decoder.layers.mlp.linear_fc2.weight": (
                layers,
                [((i, 0, 0), (1, 4, 5)) for i in range(2)],
            ),
            "decoder.final_layernorm.weight": (norm, None),
            "mtp.layers.0.eh_proj.weight": (extra, None),
            "output_layer.weight": (output, None),
        },
        [[[layers[0]], [embedding]], [[layers[1], norm, extra, output], [embedding]]],
        num_layers=2,
        pipeline_model_parallel_size=2,
        mtp_num_layers=1,
    )
    assert_states(tmp_path, whole)


def test_experts_that_are_not_cut_beside_layers_that_are(tmp_path: Path) -> None:
    proj, first, second = counted(0, 4, 6), counted(1, 3, 10, 4), counted(2, 3, 4, 5)
    name = "decoder.layers.0.mlp.experts.experts"
    halves = [((e, at, 0), (1, 5, 4)) for e in range(3) for at in (0, 5)]
    groups = []
    for rank in range(2):
        experts = [part for e in range(3) for part in (first[e], second[e])]
        groups.append([[proj[:, 3 * rank : 3 * rank + 3], *experts]])
    whole = run(
        tmp_path,
        {
            "decoder.layers.0.self_attention.linear_proj.weight": (
                proj,
                [((0, 0), (4, 3)), ((0, 3), (4, 3))],
            ),
            f"{name}.linear_fc1.weight": (first, halves),
            f"{name}.linear_fc2.weight": (second, [((e, 0, 0), (1, 4, 5)) for e in range(3)]),
        },
        groups,
        num_layers=1,
        num_experts=3,
        tensor_model_parallel_size=2,
        expert_tensor_parallel_size=1,
    )
    assert_states(tmp_path, whole)
