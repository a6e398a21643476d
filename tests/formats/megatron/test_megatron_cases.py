"""Real checkpoints: everything that is read equals what the running optimizer held."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import reshard
from real_cases import MEGATRON
from reshard.formats.megatron.detect import detect
from reshard.formats.megatron.read import read
from reshard.language import format_document, parse
from whole_tensors import arrange, wholes

Open = Callable[[str], Path]
Array = np.ndarray[Any, Any]
Found = dict[tuple[str, str], Array]

PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")
FILED = {  # how `torch_dist` files the norms of a layer of the local specification
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.")


def truth(path: Path) -> Iterator[tuple[str, str, str, bytes, tuple[int, ...]]]:
    """Name, state, element type, bytes, and shape of every tensor of a truth file."""
    with safe_open(path, "np") as file:
        keys = list(file.keys())
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for key in keys:
        name, _, state = key.rpartition("/")
        start, stop = (8 + length + at for at in header[key]["data_offsets"])
        entry = header[key]
        yield name, state, entry["dtype"], data[start:stop], tuple(entry["shape"])


def held(found: Found, name: str, state: str) -> Array:
    """A parameter of the truth among what was read, stacked or in a key of its own."""
    if (name, state) in found:
        return found[name, state]
    for plain, filed in FILED.items():
        name = name.replace(plain, filed)
    expert = EXPERT.search(name)
    name = EXPERT.sub("mlp.experts.experts.", name)
    layer = re.search(r"layers\.(\d+)\.", name)
    assert layer is not None
    if (name, state) not in found:
        name = name.replace(layer[0], "layers.")
        whole = found[name, state][int(layer[1])]
    else:
        whole = found[name, state]
    return whole if expert is None else whole[int(expert[1])]


@pytest.mark.parametrize("case", MEGATRON)
def test_every_state_is_the_truth(case: str, fixture_checkpoint: Open) -> None:
    folder = fixture_checkpoint(case)
    assert detect(folder / "ckpt")
    found = wholes(arrange(read(folder / "ckpt")))
    count = 0
    for name, state, dtype, raw, shape in truth(folder / "truth.safetensors"):
        whole = held(found, name, state)
        if name in PADDED:  # the number of padded rows depends on the mesh
            assert whole.shape[1:] == shape[1:], name
            rows = min(len(whole), shape[0])
            raw = raw[: rows * (len(raw) // shape[0])]
            whole = whole[:rows]
        else:
            assert whole.shape == shape, name
        assert whole.dtype.itemsize == {"F32": 4, "BF16": 2}[dtype]
        assert np.ascontiguousarray(whole).tobytes() == raw, (name, state)
        count += whole.size
    states = {"param", "master", "exp_avg", "exp_avg_sq"}
    size = sum(whole.size for (_, state), whole in found.items() if state in states)
    padding = sum(
        whole.size - truth_size
        for (name, state), whole in found.items()
        if name in PADDED and state in states
        for truth_size in [min(len(whole), _rows(folder, name)) * whole.shape[1]]
    )
    assert count == size - padding  # nothing else was found


def _rows(folder: Path, name: str) -> int:
    with safe_open(folder / "truth.safetensors", "np") as file:
        return int(file.get_slice(f"{name}/param").get_shape()[0])


@pytest.mark.parametrize("case", MEGATRON)
def test_every_parameter_has_its_number_of_steps(case: str, fixture_checkpoint: Open) -> None:
    found = wholes(arrange(read(fixture_checkpoint(case) / "ckpt")))
    trained = {name for name, state in found if state == "exp_avg"}
    assert {name for name, state in found if state == "step"} == trained
    assert {float(value) for (_, state), value in found.items() if state == "step"} == {3.0}


@pytest.mark.parametrize("case", MEGATRON)
def test_the_layout_is_canonical(case: str, fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint(case) / "ckpt")
    assert format_document(parse(catalog.layout.text, "layout")) == catalog.layout.text


@pytest.mark.parametrize("case", MEGATRON)
def test_training_is_whole_and_json(case: str, fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint(case) / "ckpt")
    training = catalog.training
    framework = training.framework
    assert framework is not None
    json.dumps([training.param_groups, training.state, framework], allow_nan=False)
    assert training.iteration == 3
    assert framework["name"] == "megatron"
    assert set(training.state or {}) == {"lr_scheduler"}
    listed = [name for group in training.param_groups for name in group["params"]]  # type: ignore[attr-defined]
    assert len(listed) == len(set(listed))
    trained = {whole.name for whole in arrange(catalog).wholes if whole.state == "exp_avg"}
    assert set(listed) == trained
    decay = {group["weight_decay"] for group in training.param_groups}
    assert decay == {0.1, 0.0}


@pytest.mark.parametrize("case", MEGATRON)
def test_files_are_listed_with_their_sizes(case: str, fixture_checkpoint: Open) -> None:
    catalog = read(fixture_checkpoint(case) / "ckpt")
    root = Path(catalog.root)
    there = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert {file.path for file in catalog.files} == there
    assert all((root / file.path).stat().st_size == file.nbytes for file in catalog.files)


def test_a_shifted_optimizer_is_refused(fixture_checkpoint: Open, tmp_path: Path) -> None:
    folder = fixture_checkpoint("megatron_dist_shifted") / "ckpt"
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.open(folder)
    assert str(caught.value).replace(str(folder), "...").split("\n") == SHIFTED
    with pytest.raises(reshard.ReshardError, match="shifted-optimizer"):
        reshard.convert(folder, tmp_path / "all", "universal")
    assert not (tmp_path / "all").exists()


def test_the_weights_beside_a_shifted_optimizer_are_sound(
    fixture_checkpoint: Open, tmp_path: Path
) -> None:
    case = fixture_checkpoint("megatron_dist_shifted")
    reshard.convert(case / "ckpt", tmp_path / "out", "universal", states="weights")
    checkpoint = reshard.open(tmp_path / "out")
    assert checkpoint.states == ("param",)
    for name, state, _, raw, _ in truth(case / "truth.safetensors"):
        if state == "param" and name == "decoder.final_layernorm.weight":
            assert checkpoint.read(name).tobytes() == raw


SHIFTED = [
    "error[shifted-optimizer]: the optimizer's fp32 weights of 7 of 9 tensors do not round to the "
    "weights",
    "  = note: first: `decoder.layers.mlp.linear_fc2.weight`, in .../iter_0000003",
    "  = note: Megatron-core 0.14 to 0.16 writes such files when its optimizer has several "
    "buckets: all of its states are then shifted",
    "  = help: convert the weights with `--states weights`, and continue without these states",
    "  = help: or go back to a checkpoint in another format of the same run",
]


@pytest.mark.parametrize(
    "cases",
    [
        ("megatron_untied_tp2_pp2", "megatron_dist_untied", "megatron_dist_layers"),
        ("megatron_moe_ep2", "megatron_dist_moe_ep2"),
    ],
    ids=lambda cases: cases[0],
)
def test_every_form_of_a_run_gives_the_same_bytes(
    cases: tuple[str, ...], fixture_checkpoint: Open, tmp_path: Path
) -> None:
    written = []
    for case in cases:
        reshard.convert(
            fixture_checkpoint(case) / "ckpt", tmp_path / case, "universal", names="megatron"
        )
        files = sorted((tmp_path / case).glob("*.safetensors*"))
        written.append({file.name: file.read_bytes() for file in files})
    assert len(written[0]) > 4
    for other in written[1:]:
        assert other == written[0]
