"""Old forms of legacy checkpoints: row orders, names, optimizers, buckets; and rarer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import Forge, namespace, save
from test_megatron_errors import changed, message, rank

from reshard.formats.megatron.read import read
from reshard.storage.inert import Global
from whole_tensors import arrange, wholes

Found = dict[tuple[str, str], np.ndarray[Any, Any]]
HEADS, ROWS, HIDDEN = 4, 2, 8


def found_in(root: Path) -> Found:
    """Every whole tensor."""
    return wholes(arrange(read(root)))


def old_model(version: float, tp: int, rank_: int, fused: Any) -> dict[str, Any]:
    """The nested state dict of a rank before Megatron-core."""
    heads = HEADS // tp
    mine = fused.reshape(HEADS, 3, ROWS, HIDDEN)[rank_ * heads : (rank_ + 1) * heads]
    if version == 0:
        stored = mine.transpose(1, 0, 2, 3)
    elif version == 1.0:
        stored = mine.transpose(0, 2, 1, 3)
    else:
        stored = mine
    rows = np.ascontiguousarray(stored).reshape(heads * 3 * ROWS, HIDDEN)
    embedding = np.arange(16 * HIDDEN, dtype=np.float32).reshape(16, HIDDEN)
    return {
        "language_model": {
            "embedding": {"word_embeddings": {"weight": np.split(embedding, tp)[rank_]}},
            "encoder": {
                "layers.0.self_attention.query_key_value.weight": rows,
                "layers.0.self_attention.query_key_value.bias": rows[:, 0].copy(),
                "final_layernorm.weight": np.arange(HIDDEN, dtype=np.float32),
            },
        }
    }


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("version", [0, 1.0, 2.0, 3.0])
def test_row_orders_of_fused_weights(version: float, tp: int, tmp_path: Path) -> None:
    fused = np.arange(3 * HEADS * ROWS * HIDDEN, dtype=np.float32)
    fused = fused.reshape(3 * HEADS * ROWS, HIDDEN)
    size = "tensor_model_parallel_size" if version >= 3 else "model_parallel_size"
    args = namespace(
        **{size: tp, "num_attention_heads": HEADS, "hidden_size": HIDDEN, "num_layers": 1}
    )
    for index in range(tp):
        model = old_model(version, tp, index, fused)
        qkv = model["language_model"]["encoder"]["layers.0.self_attention.query_key_value.weight"]
        groups = [{"params": [0, 1], "wd_mult": 1.0}, {"params": [2, 3], "wd_mult": 0.0}]
        states = {
            0: {"exp_avg": model["language_model"]["embedding"]["word_embeddings"]["weight"]},
            1: {"exp_avg": qkv * 2},
            2: {"exp_avg": qkv[:, 0] * 2},
            3: {"exp_avg": np.zeros(HIDDEN, np.float32)},
        }
        tree: dict[str, Any] = {"args": args, "iteration": 3, "model": model}
        tree["optimizer"] = {"state": states, "param_groups": groups}
        if version:
            tree["checkpoint_version"] = version
        save(tmp_path / "iter_0000003" / f"mp_rank_{index:02d}" / "model_optim_rng.pt", tree)
    found = found_in(tmp_path / "iter_0000003")
    name = "language_model.encoder.layers.0.self_attention.query_key_value"
    assert np.array_equal(found[f"{name}.weight", "param"], fused)
    assert np.array_equal(found[f"{name}.weight", "exp_avg"], fused * 2)
    assert np.array_equal(found[f"{name}.bias", "param"], fused[:, 0])
    assert np.array_equal(found[f"{name}.bias", "exp_avg"], fused[:, 0] * 2)
    embedding = found["language_model.embedding.word_embeddings.weight", "param"]
    assert np.array_equal(embedding.ravel(), np.arange(16 * HIDDEN))


def test_rows_that_are_no_heads(tmp_path: Path) -> None:
    fused = np.zeros((3 * HEADS * ROWS, HIDDEN), np.float32)
    tree = {
        "args": namespace(num_attention_heads=5, hidden_size=25, model_parallel_size=1),
        "model": old_model(0, 1, 0, fused),
    }
    save(tmp_path / "iter_0000003" / "mp_rank_00" / "model_optim_rng.pt", tree)
    assert message(tmp_path / "iter_0000003", tmp_path) == [
        "error[fused-rows]: the 24 rows of "
        "`language_model.encoder.layers.0.self_attention.query_key_value.weight` are not 3 times "
        "those of whole heads",
        "  = note: checkpoint version 0 keeps query, key and value in an order of its own",
        "  = note: a head has 5 rows, as the arguments of "
        ".../iter_0000003/mp_rank_00/model_optim_rng.pt say",
        "  = help: load it in the Megatron that wrote it, and save it again with a newer one",
    ]


def test_a_tied_head_of_an_old_model(tmp_path: Path) -> None:
    embedding = np.arange(64, dtype=np.float32).reshape(8, 8)
    args = namespace(pipeline_model_parallel_size=2, num_attention_heads=2, hidden_size=8)
    first = {"language_model": {"embedding": {"word_embeddings": {"weight": embedding}}}}
    second = {
        "language_model": {"encoder": {"layers.0.input_layernorm.weight": embedding[0]}},
        "word_embeddings_for_head": {"weight": embedding},
    }
    for index, model in enumerate((first, second)):
        tree = {"args": args, "checkpoint_version": 3.0, "model": model}
        path = tmp_path / "iter_0000001" / f"mp_rank_00_{index:03d}" / "model_optim_rng.pt"
        save(path, tree)
    catalog = read(tmp_path / "iter_0000001")
    name = "language_model.embedding.word_embeddings.weight"
    assert catalog.aliases == {"word_embeddings_for_head.weight": name}
    found = wholes(arrange(catalog))
    assert set(found) == {
        (name, "param"),
        ("language_model.encoder.layers.0.input_layernorm.weight", "param"),
    }


def bf16(values: Any) -> Any:
    """fp32 numbers that bf16 holds exactly, as bf16 bits."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_masters_of_half_precision(tmp_path: Path) -> None:
    """One list for each group, of the parameters that are in half precision."""
    names = ["a.dense.weight", "b.layernorm.weight", "c.dense.bias"]
    values = {name: np.arange(4, dtype=np.float32) + i for i, name in enumerate(names)}
    values["a.dense.weight"] = values["a.dense.weight"].reshape(2, 2)
    model = {name: bf16(value) for name, value in values.items()}
    model["b.layernorm.weight"] = values["b.layernorm.weight"]  # stays in fp32
    groups = [{"params": [0], "wd_mult": 1.0}, {"params": [1, 2], "wd_mult": 0.0}]
    tree = {
        "args": namespace(),
        "checkpoint_version": 3.0,
        "model": model,
        "optimizer": {
            "optimizer": {"state": {}, "param_groups": groups},
            "fp32_from_fp16_params": [[values["a.dense.weight"]], [values["c.dense.bias"]]],
            "grad_scaler": {"scale": 2.0},
        },
    }
    save(tmp_path / "iter_0000003" / "mp_rank_00" / "model_optim_rng.pt", tree)
    catalog = read(tmp_path / "iter_0000003")
    found = wholes(arrange(catalog))
    assert {key for key in found if key[1] == "master"} == {
        ("a.dense.weight", "master"),
        ("c.dense.bias", "master"),
    }
    assert np.array_equal(found["c.dense.bias", "master"], values["c.dense.bias"])
    assert catalog.training.state is not None
    assert catalog.training.state["loss_scaler"] == {"scale": 2.0}


def test_groups_that_only_their_weight_decay_tells(tmp_path: Path) -> None:
    def older(_: tuple[int, int, int], tree: dict[str, Any]) -> None:
        for group in tree["optimizer"]["param_groups"]:
            group["weight_decay"] = 0.1 * group.pop("wd_mult")

    forge = Forge(wd_first=False)
    found = found_in(changed(forge, older).write(tmp_path))
    for key, value in forge.whole().items():
        assert np.array_equal(found[key], value), key


def test_one_group_of_everything(tmp_path: Path) -> None:
    def single(_: tuple[int, int, int], tree: dict[str, Any]) -> None:
        order = list(tree["model"])
        whole = forge.whole()
        states = {
            i: {state: whole[name, state] for state in ("exp_avg", "exp_avg_sq")}
            for i, name in enumerate(order)
        }
        groups = [{"wd_mult": 1.0, "params": list(states)}]
        tree["optimizer"] = {"optimizer_state_dict": {"state": states, "param_groups": groups}}

    forge = Forge()
    found = found_in(changed(forge, single).write(tmp_path))
    for key, value in forge.whole().items():
        assert np.array_equal(found[key], value), key


def test_two_optimizers_for_two_chunks(tmp_path: Path) -> None:
    forge = Forge(pp=2, vpp=2, stages=(1, 1, 1, 1))

    def split(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        whole = forge.whole()
        tree["optimizer"] = [
            forge._optimizer(place, whole, forge.chunk(place, index), expert=False)
            for index in range(2)
        ]

    found = found_in(changed(forge, split).write(tmp_path))
    for key, value in forge.whole().items():
        assert np.array_equal(found[key], value), key


@pytest.mark.parametrize("form", ["coalesced", "buckets", "packed"])
def test_distributed_optimizers_of_every_age(form: str, tmp_path: Path) -> None:
    """One tensor for all buckets; one for each with its padding; parameters without alignment."""
    forge = Forge(hidden=5, width=7, vocab=9, bias=False)
    whole = forge.whole()
    names = [name for name, state in whole if state == "param"]
    step = 1 if form == "packed" else 64
    places, at = {}, 0
    for name in reversed(names):
        at = -(-at // step) * step
        places[name] = at
        at += whole[name, "param"].size
    kinds: Any = Global("torch", "float32")
    flats: dict[str, Any] = {}
    for state, key in (("param", "param"), ("exp_avg", "exp_avg"), ("exp_avg_sq", "exp_avg_sq")):
        flat = np.zeros(at + (3 if form != "coalesced" else 0), np.float32)
        for name in names:
            value = whole[name, state].ravel()
            flat[places[name] : places[name] + value.size] = value
        flats[key] = flat if form == "coalesced" else [flat]
    if form == "coalesced":
        kinds = (kinds, kinds)
        flats["numel_unpadded"] = at

    def distributed(_: tuple[int, int, int], tree: dict[str, Any]) -> None:
        groups = [{"wd_mult": 1.0, "step": 3}, {"wd_mult": 0.0, "step": 3}]
        tree["optimizer"] = {"optimizer": {"param_groups": groups}}

    root = changed(forge, distributed).write(tmp_path)
    file = rank(root, "mp_rank_00").with_name("distrib_optim.pt")
    save(file, {"buckets_coalesced": form == "coalesced", 0: {kinds: flats}})
    found = found_in(root)
    for name in names:
        assert np.array_equal(found[name, "master"], whole[name, "param"]), name
        assert np.array_equal(found[name, "exp_avg_sq"], whole[name, "exp_avg_sq"]), name
        assert float(found[name, "step"]) == 3.0

    flats["param"] = -flats["param"] if form == "coalesced" else [-flats["param"][0]]
    save(file, {0: {kinds: flats}})
    lines = message(root, tmp_path)
    assert lines[0] == (
        "error[buffer-mismatch]: the positions of the parameters in mp_rank_00/distrib_optim.pt "
        "cannot be determined"
    )
    assert lines[1].startswith("  = note: 0 known ways of laying ")


def test_grouped_experts(tmp_path: Path) -> None:
    """`weight1` of shape [hidden, experts * width] is a view of (experts, hidden, width)."""
    experts, hidden, width = 4, 3, 2
    first = np.arange(experts * hidden * 2 * width, dtype=np.float32)
    first = first.reshape(experts, hidden, 2 * width)
    second = np.arange(experts * width * hidden, dtype=np.float32).reshape(experts, width, hidden)
    for ep in range(2):
        mine = slice(2 * ep, 2 * ep + 2)
        model = {
            "decoder.layers.0.mlp.experts.weight1": first[mine].reshape(hidden, -1),
            "decoder.layers.0.mlp.experts.weight2": second[mine].reshape(-1, hidden),
        }
        args = namespace(expert_model_parallel_size=2, num_experts=4, swiglu=True)
        tree = {"args": args, "checkpoint_version": 3.0, "model": model}
        save(tmp_path / "iter_0000003" / f"mp_rank_00_{ep:03d}" / "model_optim_rng.pt", tree)
    found = found_in(tmp_path / "iter_0000003")
    assert np.array_equal(found["decoder.layers.0.mlp.experts.weight1", "param"], first)
    assert np.array_equal(found["decoder.layers.0.mlp.experts.weight2", "param"], second)


def test_experts_of_transformer_engine_count_on_their_rank(tmp_path: Path) -> None:
    for ep in range(2):
        model = {
            f"decoder.layers.0.mlp.experts.linear_fc2.weight{i}": np.full(
                (2, 2), 2 * ep + i, np.float32
            )
            for i in range(2)
        }
        args = namespace(expert_model_parallel_size=2, num_experts=4, swiglu=True)
        tree = {"args": args, "checkpoint_version": 3.0, "model": model}
        save(tmp_path / "iter_0000003" / f"mp_rank_00_{ep:03d}" / "model_optim_rng.pt", tree)
    found = found_in(tmp_path / "iter_0000003")
    assert {name[-1]: float(value[0, 0]) for (name, _), value in found.items()} == {
        "0": 0,
        "1": 1,
        "2": 2,
        "3": 3,
    }


def test_a_mamba_mixer(tmp_path: Path) -> None:
    """Each part of the packed projections is cut by itself; the norm of a mixer is cut, too."""
    sizes = {"z": 8, "x": 8, "b": 4, "c": 4, "dt": 4}
    parts = {
        key: np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + 100 * i
        for i, (key, rows) in enumerate(sizes.items())
    }
    norm = np.arange(8, dtype=np.float32)
    args = namespace(
        tensor_model_parallel_size=2,
        hidden_size=4,
        mamba_head_dim=2,
        mamba_num_heads=4,
        mamba_state_dim=2,
        mamba_num_groups=2,
    )
    for tp in range(2):
        cut = {key: np.split(value, 2)[tp] for key, value in parts.items()}
        model = {
            "decoder.layers.0.mixer.in_proj.weight": np.concatenate(list(cut.values())),
            "decoder.layers.0.mixer.conv1d.bias": np.concatenate(
                [cut[key][:, 0] for key in ("x", "b", "c")]
            ),
            "decoder.layers.0.mixer.A_log": cut["dt"][:, 0].copy(),
            "decoder.layers.0.mixer.norm.weight": np.split(norm, 2)[tp],
        }
        tree = {"args": args, "checkpoint_version": 3.0, "model": model}
        save(tmp_path / "iter_0000003" / f"mp_rank_{tp:02d}" / "model_optim_rng.pt", tree)
    found = found_in(tmp_path / "iter_0000003")
    prefix = "decoder.layers.0.mixer"
    whole = np.concatenate(list(parts.values()))
    assert np.array_equal(found[f"{prefix}.in_proj.weight", "param"], whole)
    bias = np.concatenate([parts[key][:, 0] for key in ("x", "b", "c")])
    assert np.array_equal(found[f"{prefix}.conv1d.bias", "param"], bias)
    assert np.array_equal(found[f"{prefix}.A_log", "param"], parts["dt"][:, 0])
    assert np.array_equal(found[f"{prefix}.norm.weight", "param"], norm)


@pytest.mark.parametrize("copied", [True, False])
def test_latent_attention_down_projections(copied: bool, tmp_path: Path) -> None:
    """Transformer Engine copies them, the local specification cuts them; the rows tell."""
    down = np.arange(12 * 4, dtype=np.float32).reshape(12, 4)
    up = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)
    args = namespace(
        tensor_model_parallel_size=2, q_lora_rank=12, kv_lora_rank=8, qk_pos_emb_head_dim=4
    )
    for tp in range(2):
        model = {
            f"decoder.layers.0.self_attention.{name}.weight": value
            for name, value in {
                "linear_q_down_proj": down if copied else np.split(down, 2)[tp],
                "linear_kv_down_proj": down if copied else np.split(down, 2)[tp],
                "linear_q_up_proj": np.split(up, 2)[tp],
                "q_layernorm": np.arange(12, dtype=np.float32),
            }.items()
        }
        tree = {"args": args, "checkpoint_version": 3.0, "model": model}
        save(tmp_path / "iter_0000003" / f"mp_rank_{tp:02d}" / "model_optim_rng.pt", tree)
    found = found_in(tmp_path / "iter_0000003")
    prefix = "decoder.layers.0.self_attention"
    assert np.array_equal(found[f"{prefix}.linear_q_down_proj.weight", "param"], down)
    assert np.array_equal(found[f"{prefix}.linear_kv_down_proj.weight", "param"], down)
    assert np.array_equal(found[f"{prefix}.linear_q_up_proj.weight", "param"], up)


def test_layers_of_multi_token_prediction_are_numbered_over_the_model(tmp_path: Path) -> None:
    for pp in range(2):
        model = {"decoder.layers.0.input_layernorm.weight": np.full(4, pp, np.float32)}
        if pp:
            for k in range(2):
                model[f"mtp.layers.{k}.enorm.weight"] = np.full(4, 10 + k, np.float32)
        args = namespace(pipeline_model_parallel_size=2, untie_embeddings_and_output_weights=True)
        tree = {"args": args, "checkpoint_version": 3.0, "model": model}
        save(tmp_path / "iter_0000003" / f"mp_rank_00_{pp:03d}" / "model_optim_rng.pt", tree)
    found = found_in(tmp_path / "iter_0000003")
    assert {name: float(value[0]) for (name, _), value in found.items()} == {
        "decoder.layers.0.input_layernorm.weight": 0,
        "decoder.layers.1.input_layernorm.weight": 1,
        "mtp.layers.0.enorm.weight": 10,
        "mtp.layers.1.enorm.weight": 11,
    }


def test_a_stage_without_layers(tmp_path: Path) -> None:
    """A pipeline layout may leave the embedding or the loss alone on a stage."""
    forge = Forge(pp=3, stages=(0, 2, 1))
    found = found_in(forge.write(tmp_path))
    for key, value in forge.whole().items():
        assert np.array_equal(found[key], value), key


def test_two_stacks_of_layers(tmp_path: Path) -> None:
    """An encoder and a decoder count their layers apart."""
    held = [{"encoder.layers.0": 1}, {"encoder.layers.0": 2, "decoder.layers.0": 3}]
    for pp, layers in enumerate(held):
        model = {
            f"{name}.input_layernorm.weight": np.full(4, value, np.float32)
            for name, value in layers.items()
        }
        args = namespace(pipeline_model_parallel_size=2, untie_embeddings_and_output_weights=True)
        tree = {"args": args, "checkpoint_version": 3.0, "model": model}
        save(tmp_path / "iter_0000003" / f"mp_rank_00_{pp:03d}" / "model_optim_rng.pt", tree)
    found = found_in(tmp_path / "iter_0000003")
    assert {name.removesuffix(".input_layernorm.weight"): float(v[0]) for (name, _), v in
            found.items()} == {
        "encoder.layers.0": 1,
        "encoder.layers.1": 2,
        "decoder.layers.0": 3,
    }  # fmt: skip
