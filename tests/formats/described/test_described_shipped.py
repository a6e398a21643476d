"""Folders that descriptions of ours are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_described_read import same

import reshard
from reshard.errors import ReshardError
from reshard.formats.described.meta_params import with_width
from reshard.storage.inert import Global, Record, Size
from reshard.storage.torch_file import open_torch_file
from safetensors_files import save
from torch_trees import counted, write_tree

DIM, LAYERS, INNER, VOCABULARY = 16, 2, 12, 10
CUTS = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0}


def meta(folder: Path, ranks: int, embedding: int) -> dict[str, Any]:
    """A release of Llama by Meta; returns the whole tensors.

    Args:  embedding: the dimension that the embedding is cut along: 1 up to Llama 2, then 0.
    """
    whole = {
        "tok_embeddings.weight": counted(VOCABULARY * 8, DIM),
        "norm.weight": counted(DIM),
        "output.weight": counted(VOCABULARY * 8, DIM, start=1000),
    }
    for layer in range(LAYERS):
        prefix = f"layers.{layer}."
        for at, name in enumerate(CUTS):
            shape = {"w1": (INNER * 8, DIM), "w3": (INNER * 8, DIM), "w2": (DIM, INNER * 8)}.get(
                name, (DIM, DIM)
            )
            part = "feed_forward" if name[1].isdigit() else "attention"
            whole[f"{prefix}{part}.{name}.weight"] = counted(*shape, start=100 * at + layer)
        whole[f"{prefix}attention_norm.weight"] = counted(DIM, start=layer)
        whole[f"{prefix}ffn_norm.weight"] = counted(DIM, start=layer + 5)
    for rank in range(ranks):
        tree: dict[str, Any] = {"rope.freqs": counted(2)}
        for name, value in whole.items():
            kind = name.split(".")[-2]
            dim = {**CUTS, "tok_embeddings": embedding, "output": 0}.get(kind)
            if dim is None:
                tree[name] = value.copy()
            else:
                size = value.shape[dim] // ranks
                cut = [slice(None)] * 2
                cut[dim] = slice(rank * size, rank * size + size)
                tree[name] = value[tuple(cut)].copy()
        write_tree(folder / f"consolidated.{rank:02}.pth", tree)
    params = {"dim": DIM, "n_layers": LAYERS, "n_heads": 8, "norm_eps": 1e-5, "vocab_size": 80}
    params["rope_theta"] = 10000.0
    (folder / "params.json").write_text(json.dumps(params))
    return whole


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize(("layout", "embedding"), [("meta", 1), ("meta_llama3", 0)])
def test_releases_of_meta(tmp_path: Path, ranks: int, layout: str, embedding: int) -> None:
    whole = meta(tmp_path / "llama", ranks, embedding)
    checkpoint = reshard.open(tmp_path / "llama")
    assert checkpoint.mesh == {"tp": ranks}
    assert set(checkpoint.parameters) == set(whole)
    assert all(same(checkpoint.read(name), value) for name, value in whole.items())
    left = [(item.file, item.key) for item in checkpoint.inspect().left]
    assert ("consolidated.00.pth", "rope.freqs") in left
    other = 2 if ranks != 2 else 4
    reshard.convert(tmp_path / "llama", tmp_path / "other", f"{layout}:tp={other}")
    again = reshard.open(tmp_path / "other")
    assert again.mesh == {"tp": other}
    assert all(same(again.read(name), value) for name, value in whole.items())
    part = "consolidated.00.pth"
    wanted = (80, DIM // other) if embedding else (80 // other, DIM)
    tree = open_torch_file(tmp_path / "other" / part).root
    assert isinstance(tree, dict)
    assert tree["tok_embeddings.weight"].shape == wanted


def test_a_release_of_meta_becomes_a_model_of_transformers(tmp_path: Path) -> None:
    meta(tmp_path / "llama", 2, 1)
    settings = {"max_position_embeddings": 64}
    reshard.convert(tmp_path / "llama", tmp_path / "hf", "hf", settings=settings)
    (tmp_path / "hf/params.json").unlink()  # that of the release goes along as it is
    reshard.convert(tmp_path / "hf", tmp_path / "back", "meta:tp=2")
    assert reshard.verify(tmp_path / "llama", tmp_path / "back").ok
    params = json.loads((tmp_path / "back/params.json").read_text())
    width = int(params.get("ffn_dim_multiplier", 1) * int(8 * params["dim"] / 3))
    multiple = params["multiple_of"]
    stated = json.loads((tmp_path / "hf/config.json").read_text())
    assert multiple * ((width + multiple - 1) // multiple) == stated["intermediate_size"]


@pytest.mark.parametrize(
    ("dim", "width", "told"),
    [
        (4096, 11008, {"multiple_of": 256}),
        (4096, 14336, {"multiple_of": 1024, "ffn_dim_multiplier": 1.3}),
        (16, 33, {"multiple_of": 1, "ffn_dim_multiplier": 33.5 / 42}),
    ],
)
def test_meta_is_told_the_width_of_the_mlp(dim: int, width: int, told: dict[str, Any]) -> None:
    assert with_width({"dim": dim}, width) == {"dim": dim, **told}
    assert with_width({"dim": dim, **told}, width) == {"dim": dim, **told}


def sharded(value: Any, shape: tuple[int, ...], rank: int, world: int, lo: list[int]) -> Record:
    """A ShardedTensor as FSDP1 pickles it."""
    api = "torch.distributed._shard.sharded_tensor"
    told = {"shard_offsets": lo, "shard_sizes": list(value.shape)}
    metadata = Record("torch.distributed._shard.metadata", "ShardMetadata", (), "newobj", [told])
    fields = {"tensor": value, "metadata": metadata}
    shard = Record(f"{api}.shard", "Shard", (), "newobj", [(None, fields)])
    whole = Record(
        f"{api}.metadata", "ShardedTensorMetadata", (), "newobj", [{"size": Size(shape)}]
    )
    group = {"global_rank": rank, "global_world_size": world}
    state = Record(f"{api}.api", "ShardedTensor.ProcessGroupState", (), "newobj", [group])
    kind = Global(f"{api}.api", "ShardedTensor")
    args = (
        Global("torch._utils", "_rebuild_wrapper_subclass"),
        kind,
        (),
        ([shard], whole, state, None, False),
    )
    return Record("torch._tensor", "_rebuild_from_type_v2", args)


def verl(folder: Path) -> dict[str, Any]:
    """What verl saves of two ranks; returns the whole weights."""
    whole = {"a.weight": counted(6, 4), "a.bias": counted(6), "b.weight": counted(3, 6)}
    for rank in range(2):

        def cut(value: Any, rank: int = rank) -> Any:
            rows = -(-value.shape[0] // 2)
            part = value[rank * rows : (rank + 1) * rows].copy()
            lo = [rank * rows, *[0] * (value.ndim - 1)]
            return sharded(part, value.shape, rank, 2, lo)

        end = f"world_size_2_rank_{rank}.pt"
        write_tree(folder / f"model_{end}", {name: cut(value) for name, value in whole.items()})
        state = {
            at: {"step": np.array(3, np.float32), "exp_avg": cut(value * np.float32(0.5))}
            for at, value in enumerate(whole.values())
        }
        groups = [{"lr": 0.1, "params": [0, 1, 2]}]
        write_tree(folder / f"optim_{end}", {"state": state, "param_groups": groups})
        extra = {"lr_scheduler": {"last_epoch": 3}, "rng": np.full(3, rank, np.uint8)}
        write_tree(folder / f"extra_state_{end}", extra)
    return whole


def test_ranks_that_say_which_part_they_hold(tmp_path: Path) -> None:
    whole = verl(tmp_path / "actor")
    checkpoint = reshard.open(tmp_path / "actor")
    assert checkpoint.mesh == {"dp": 2}
    assert checkpoint.training.iteration == 3
    assert checkpoint.training.state == {"lr_scheduler": {"last_epoch": 3}}
    for name, value in whole.items():
        assert same(checkpoint.read(name), value)
        assert same(checkpoint.read(name, "exp_avg"), value * np.float32(0.5))
    reshard.convert(tmp_path / "actor", tmp_path / "u", "universal")
    assert reshard.verify(tmp_path / "actor", tmp_path / "u").ok


def test_verl_at_other_ranks(tmp_path: Path) -> None:
    """Three ranks share rows that three does not divide, and torch's own mesh says which."""
    whole = verl(tmp_path / "actor")
    done = reshard.convert(tmp_path / "actor", tmp_path / "three", "verl:dp=3,device=cpu")
    assert [item.code for item in done.report.warnings] == ["training-left"]  # random states
    tree: Any = open_torch_file(tmp_path / "three" / "model_world_size_3_rank_1.pt").root
    spec = tree["b.weight"].args[3][1]["_spec"].attributes
    mesh = spec["mesh"].attributes
    assert (mesh["_device_type"], mesh["_rank"], mesh["_mesh_dim_names"]) == ("cpu", 1, ("fsdp",))
    assert spec["tensor_meta"].args[0] == (3, 6)
    checkpoint = reshard.open(tmp_path / "three")
    assert checkpoint.mesh == {"dp": 3}
    for name, value in whole.items():
        assert same(checkpoint.read(name), value)
        assert same(checkpoint.read(name, "exp_avg"), value * np.float32(0.5))
    assert [group["params"] for group in checkpoint.training.param_groups] == [list(whole)]
    assert checkpoint.training.state == {"lr_scheduler": {"last_epoch": 3}}
    reshard.convert(tmp_path / "three", tmp_path / "back", "verl:dp=2")
    assert reshard.verify(tmp_path / "actor", tmp_path / "back").ok
    with pytest.raises(ReshardError) as caught:
        reshard.convert(tmp_path / "actor", tmp_path / "no", "nanogpt:device=cpu", names="source")
    assert "has no option `device`" in str(caught.value)


def test_a_tensor_that_every_rank_of_verl_has_whole(tmp_path: Path) -> None:
    """A buffer, which FSDP does not cut, is neither joined nor cut."""
    for rank in range(2):
        path = tmp_path / "actor" / f"model_world_size_2_rank_{rank}.pt"
        part = counted(5, 2)[3 * rank : 3 * rank + 3].copy()
        rows = sharded(part, (5, 2), rank, 2, [3 * rank, 0])
        write_tree(path, {"w": rows, "mask": counted(4, 2)})
    checkpoint = reshard.open(tmp_path / "actor")
    assert same(checkpoint.read("w"), counted(5, 2))
    assert same(checkpoint.read("mask"), counted(4, 2))
    reshard.convert(tmp_path / "actor", tmp_path / "three", "verl:dp=3", states="weights")
    tree: Any = open_torch_file(tmp_path / "three" / "model_world_size_3_rank_2.pt").root
    assert tree["mask"].shape == (4, 2)
    assert isinstance(tree["w"], Record)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_a_model_ties(tmp_path: Path, tied: bool) -> None:
    """torch's state dict has it under both names, as the configuration tells."""
    weights = {"model.embed_tokens.weight": counted(5, 4), "model.norm.weight": counted(4)}
    if not tied:
        weights["lm_head.weight"] = counted(5, 4, start=9)
    safetensors(tmp_path / "run/model.safetensors", weights)
    config = {"model_type": "unheard_of", "tie_word_embeddings": tied}
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    reshard.convert(tmp_path / "run", tmp_path / "out", "verl:dp=2", names="source")
    tree: Any = open_torch_file(tmp_path / "out" / "model_world_size_2_rank_0.pt").root
    assert set(tree) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    parts = [tree[f"{name}.weight"].args[3][1] for name in ("model.embed_tokens", "lm_head")]
    keys = [part["_local_tensor"].storage_key for part in parts]
    assert (keys[0] == keys[1]) == tied
    aliases = reshard.open(tmp_path / "out").aliases
    assert aliases == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})


def test_a_file_under_the_name_of_another_rank(tmp_path: Path) -> None:
    verl(tmp_path / "actor")
    names = [tmp_path / "actor" / f"model_world_size_2_rank_{rank}.pt" for rank in range(2)]
    names[0].rename(tmp_path / "x")
    names[1].rename(names[0])
    (tmp_path / "x").rename(names[1])
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "actor")
    assert "`a.weight` in model_world_size_2_rank_0.pt: it was written by rank 1" in str(
        caught.value
    )


def test_files_of_two_runs(tmp_path: Path) -> None:
    verl(tmp_path / "actor")
    other = tmp_path / "actor" / "model_world_size_4_rank_3.pt"
    other.write_bytes((tmp_path / "actor" / "model_world_size_2_rank_0.pt").read_bytes())
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "actor")
    assert "error[mixed-runs]" in str(caught.value)


def safetensors(
    path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """A file of safetensors."""
    raw = {k: ("F32", v.shape, np.ascontiguousarray(v).tobytes()) for k, v in tensors.items()}
    save(path, raw, metadata)


CONFIG = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 16,
    "vocab_size": 61,
}


def fused(value: Any, sizes: tuple[int, ...], rank: int, ranks: int) -> Any:
    """A rank's rows of each part of a fused tensor."""
    out, at = [], 0
    for size in sizes:
        step = size // ranks
        out.append(value[at + rank * step : at + rank * step + step])
        at += size
    return np.concatenate(out)


@pytest.mark.parametrize("parts", [1, 2])
def test_ranks_of_vllm(tmp_path: Path, parts: int) -> None:
    whole = {
        "model.embed_tokens.weight": counted(61, 16),
        "model.layers.0.self_attn.qkv_proj.weight": counted(32, 16),
        "model.layers.0.self_attn.o_proj.weight": counted(16, 16, start=9),
        "model.layers.0.mlp.gate_up_proj.weight": counted(24, 16, start=5),
        "model.layers.0.mlp.down_proj.weight": counted(16, 12, start=3),
        "model.layers.0.input_layernorm.weight": counted(16),
        "model.norm.weight": counted(16, start=1),
        "lm_head.weight": counted(61, 16, start=2),
    }
    for rank in range(2):
        held = {}
        for name, value in whole.items():
            if value.shape[0] == 61:  # the vocabulary is padded to 64
                value = np.concatenate([value, np.zeros((3, 16), np.float32)])
            if "qkv" in name:
                held[name] = fused(value, (16, 8, 8), rank, 2)
            elif "gate_up" in name:
                held[name] = fused(value, (12, 12), rank, 2)
            elif "o_proj" in name or "down" in name:
                held[name] = np.split(value, 2, axis=1)[rank]
            else:
                held[name] = value if "norm" in name else np.split(value, 2)[rank]
        items = list(held.items())
        for part in range(parts):
            path = tmp_path / "run" / f"model-rank-{rank}-part-{part}.safetensors"
            safetensors(path, dict(items[part::parts]))
    (tmp_path / "run/config.json").write_text(json.dumps(CONFIG))
    checkpoint = reshard.open(tmp_path / "run")
    assert checkpoint.mesh == {"tp": 2}
    assert all(same(checkpoint.read(name), value) for name, value in whole.items())
    reshard.convert(tmp_path / "run", tmp_path / "one", "vllm_sharded:tp=1")
    assert (tmp_path / "one/model-rank-0-part-0.safetensors").is_file()
    reshard.convert(tmp_path / "one", tmp_path / "two", "vllm_sharded:tp=2")
    assert reshard.verify(tmp_path / "run", tmp_path / "two").ok
    assert json.loads((tmp_path / "two/config.json").read_text()) == CONFIG


def test_vllm_and_transformers(tmp_path: Path) -> None:
    """The names of a model of transformers become those of vLLM, and whole heads are cut."""
    meta(tmp_path / "meta", 1, 1)
    settings = {"max_position_embeddings": 64}
    reshard.convert(tmp_path / "meta", tmp_path / "hf", "hf", settings=settings)
    reshard.convert(tmp_path / "hf", tmp_path / "vllm", "vllm_sharded:tp=4")
    one, other = reshard.open(tmp_path / "hf"), reshard.open(tmp_path / "vllm")
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    fused = np.concatenate([one.read(name) for name in names])
    assert same(other.read("model.layers.1.self_attn.qkv_proj.weight"), fused)
    reshard.convert(tmp_path / "vllm", tmp_path / "back", "hf")
    assert reshard.verify(tmp_path / "hf", tmp_path / "back").ok
    with pytest.raises(ReshardError) as caught:
        reshard.convert(tmp_path / "hf", tmp_path / "no", "vllm_sharded:tp=16")
    assert "[uneven-target]" in str(caught.value)


@pytest.mark.parametrize("cut", [None, 0, 1])
def test_ranks_of_tensorrt(tmp_path: Path, cut: int | None) -> None:
    """The embedding is whole, or cut by rows or columns; the configuration states the mesh."""
    whole = {
        "transformer.vocab_embedding.weight": counted(61, 16),
        "transformer.layers.0.attention.qkv.weight": counted(32, 16),
        "transformer.layers.0.attention.dense.weight": counted(16, 16, start=9),
        "transformer.layers.0.mlp.fc.weight": counted(12, 16, start=5),
        "transformer.layers.0.mlp.proj.weight": counted(16, 12, start=3),
        "transformer.layers.0.input_layernorm.weight": counted(16),
        "transformer.ln_f.weight": counted(16, start=1),
        "lm_head.weight": counted(61, 16, start=2),
    }
    safetensors(tmp_path / "one/rank0.safetensors", whole)
    config = {**CONFIG, "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1}}
    config |= {"use_parallel_embedding": cut is not None, "embedding_sharding_dim": cut or 0}
    (tmp_path / "one/config.json").write_text(json.dumps(config))
    reshard.convert(tmp_path / "one", tmp_path / "two", "tensorrt_llm:tp=2")
    checkpoint = reshard.open(tmp_path / "two")
    assert checkpoint.mesh == {"tp": 2}
    assert all(same(checkpoint.read(name), value) for name, value in whole.items())
    written = json.loads((tmp_path / "two/config.json").read_text())
    assert written == {**config, "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1}}
    first = (tmp_path / "two/rank0.safetensors").read_bytes()
    shapes = json.loads(first[8 : 8 + int.from_bytes(first[:8], "little")])
    embedding = {None: [61, 16], 0: [31, 16], 1: [61, 8]}[cut]
    assert shapes["transformer.vocab_embedding.weight"]["shape"] == embedding
    assert shapes["lm_head.weight"]["shape"] == [31, 16]


def test_a_configuration_of_another_mesh(tmp_path: Path) -> None:
    safetensors(tmp_path / "run/rank0.safetensors", {"transformer.ln_f.weight": counted(16)})
    config = {**CONFIG, "mapping": {"tp_size": 2}}
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run")
    assert str(caught.value) == (
        "error[mixed-runs]: `mapping/tp_size` in config.json is 2, and the files are of tp=1\n"
        " --> tensorrt_llm.ucl:9:9\n"
        "  |\n"
        '9 |         fill "mapping/tp_size"    = tp optional\n'
        "  |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ read here\n"
        "  |\n"
        "  = note: the layout says that it is tp: 1\n"
        "  = help: the folder holds files of two runs, or not all of one; copy those of one"
    )


def test_what_meta_says_of_the_model_is_translated_or_named(tmp_path: Path) -> None:
    meta(tmp_path / "llama", 2, 0)
    path = tmp_path / "llama" / "params.json"
    params = json.loads(path.read_text())
    settings = {"tie_word_embeddings": False}
    path.write_text(json.dumps({**params, "use_scaled_rope": True, "multiple_of": 256}))
    with pytest.raises(ReshardError) as caught:
        reshard.convert(tmp_path / "llama", tmp_path / "out", "hf", settings=settings)
    text = str(caught.value)
    assert text.startswith("error[other-facts]: ")
    assert "`use_scaled_rope` is true" in text
    assert "`--config DIR`" in text
    path.write_text(json.dumps({**params, "multiple_of": 256, "own_scale": 2}))
    done = reshard.convert(tmp_path / "llama", tmp_path / "out", "hf", settings=settings)
    [warning] = [x for x in done.report.warnings if x.code == "unknown-arguments"]
    assert warning.headline == "1 key of the model's configuration is not known to Meta's format"
    plain = json.loads((tmp_path / "out/config.json").read_text())
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    path.write_text(json.dumps({**params, "use_scaled_rope": True}))
    given = tmp_path / "config.json"
    given.write_text(json.dumps({**plain, "rope_scaling": scaling}))
    reshard.convert(tmp_path / "llama", tmp_path / "again", "hf", config=given)
    found = json.loads((tmp_path / "again/config.json").read_text())
    assert found["rope_scaling"] == scaling
