"""Models that their layout cannot cut as the checkpoint is cut, or cannot stack."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import Forge as RankForge
from megatron_forge import Kind, namespace, save

import reshard
from reshard.errors import ReshardError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dcp"))

from dcp_forge import Forge


@dataclass(frozen=True)
class Grouped(RankForge):
    """Two groups of two queries, whose rows lie on more ranks than there are groups."""

    def layer(self) -> list[Kind]:
        """With keys and values of two heads."""
        wide = Kind("self_attention.linear_qkv.weight", (16, self.hidden), "rows")
        return [wide if "linear_qkv" in kind.name else kind for kind in super().layer()]


GROUPED = Grouped(
    tp=4,
    bias=False,
    args={
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "group_query_attention": True,
        "kv_channels": 2,
        "ffn_hidden_size": 12,
        "normalization": "RMSNorm",
        "make_vocab_size_divisible_by": 6,
    },
)


FACTS = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0}
"""What no tensor tells, and the arguments of these runs do not state."""


@pytest.mark.parametrize("target", ["megatron:tp=1", "megatron:tp=2,pp=2", "megatron-dist", "hf"])
def test_more_ranks_than_groups_of_queries(target: str, tmp_path: Path) -> None:
    source = GROUPED.write(tmp_path / "run")
    settings = FACTS if target == "hf" else {}
    reshard.convert(source, tmp_path / "out", target, settings=settings)
    states = "weights" if target == "hf" else "all"
    assert reshard.verify(source, tmp_path / "out", states=states).ok
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    if target.startswith("megatron:"):
        for state in ("param", "exp_avg"):
            kept = np.asarray(reshard.open(tmp_path / "out").read(name, state))
            assert np.array_equal(kept, GROUPED.whole()[name, state])


def test_copies_still_have_to_agree(tmp_path: Path) -> None:
    def change(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        norm = tree["model"]["decoder.layers.0.input_layernorm.weight"].copy()
        norm[3] += place[0] == 2
        tree["model"]["decoder.layers.0.input_layernorm.weight"] = norm

    replace(GROUPED, change=change).write(tmp_path / "run")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(tmp_path / "run", tmp_path / "out", "megatron:tp=1")
    assert caught.value.diagnostics[0].code == "replica-mismatch"


def test_what_is_wrong_at_first_is_told(tmp_path: Path) -> None:
    GROUPED.write(tmp_path / "run")
    with pytest.raises(ReshardError) as caught:
        reshard.convert(tmp_path / "run", tmp_path / "out", "megatron:tp=4")
    assert caught.value.diagnostics[0].code == "uneven-target"


MIXED = {
    "embedding.word_embeddings.weight": (12, 8),
    **{
        f"decoder.layers.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "self_attention.linear_qkv.layer_norm_weight": (8,),
            "self_attention.linear_proj.weight": (8, 8),
            "self_attention.linear_qkv.weight": (24, 8),
            "mlp.linear_fc1.layer_norm_weight": (8,),
        }.items()
    },
    "decoder.layers.0.mlp.linear_fc1.weight": (20, 8),
    "decoder.layers.0.mlp.linear_fc2.weight": (8, 10),
    "decoder.layers.1.mlp.router.weight": (3, 8),
    "decoder.layers.1.mlp.experts.experts.linear_fc1.weight": (3, 12, 8),
    "decoder.layers.1.mlp.experts.experts.linear_fc2.weight": (3, 8, 6),
    "decoder.final_layernorm.weight": (8,),
    "output_layer.weight": (12, 8),
}
MIXED_ARGS: dict[str, object] = {
    "num_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "kv_channels": 4,
    "ffn_hidden_size": 10,
    "moe_ffn_hidden_size": 6,
    "num_experts": 3,
    "moe_layer_freq": [0, 1],
    "moe_router_topk": 1,
    "swiglu": True,
    "normalization": "RMSNorm",
    "untie_embeddings_and_output_weights": True,
    "make_vocab_size_divisible_by": 4,
    "padded_vocab_size": 12,
}


def dist(root: Path, shapes: dict[str, tuple[int, ...]], args: dict[str, object]) -> Path:
    """A `torch_dist` folder of weights, every element with its own number."""
    folder = root / "release"
    forge = Forge(folder)
    first = 0.0
    for name, shape in shapes.items():
        value = first + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        forge.tensor(name, value)
        first += value.size
    forge.write()
    save(folder / "common.pt", {"args": namespace(**args), "checkpoint_version": 3.0})
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (root / "latest_checkpointed_iteration.txt").write_text("release")
    return root


def test_layers_of_two_kinds_get_a_key_each(tmp_path: Path) -> None:
    source = dist(tmp_path / "run", MIXED, MIXED_ARGS)
    reshard.convert(source, tmp_path / "ranks", "megatron:tp=2")
    reshard.convert(tmp_path / "ranks", tmp_path / "out", "megatron-dist")
    assert set(reshard.open(tmp_path / "out").tensors) == set(MIXED)
    assert reshard.verify(source, tmp_path / "out").ok


def test_names_that_were_asked_for_are_not_replaced(tmp_path: Path) -> None:
    source = dist(tmp_path / "run", MIXED, MIXED_ARGS)
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "megatron-dist", names="megatron_dist")
    assert caught.value.diagnostics[0].code == "indexed-atom"


LATENT = {
    "embedding.word_embeddings.weight": (12, 8),
    **{
        f"decoder.layers.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "input_layernorm.weight": (8,),
            "self_attention.linear_proj.weight": (8, 8),
            "self_attention.linear_q_down_proj.weight": (6, 8),
            "self_attention.linear_q_up_proj.weight": (12, 6),
            "self_attention.linear_kv_down_proj.weight": (6, 8),
            "self_attention.linear_kv_up_proj.weight": (16, 4),
            "self_attention.q_layernorm.weight": (6,),
            "self_attention.kv_layernorm.weight": (4,),
            "pre_mlp_layernorm.weight": (8,),
        }.items()
    },
    "decoder.layers.0.mlp.linear_fc1.weight": (20, 8),
    "decoder.layers.0.mlp.linear_fc2.weight": (8, 10),
    "decoder.layers.1.mlp.router.weight": (3, 8),
    "decoder.layers.1.mlp.experts.experts.linear_fc1.weight": (3, 12, 8),
    "decoder.layers.1.mlp.experts.experts.linear_fc2.weight": (3, 8, 6),
    "decoder.layers.1.mlp.shared_experts.linear_fc1.weight": (12, 8),
    "decoder.layers.1.mlp.shared_experts.linear_fc2.weight": (8, 6),
    "decoder.final_layernorm.weight": (8,),
    "output_layer.weight": (12, 8),
}
LATENT_ARGS = {
    **MIXED_ARGS,
    "multi_latent_attention": True,
    "qk_head_dim": 4,
    "qk_pos_emb_head_dim": 2,
    "v_head_dim": 4,
    "q_lora_rank": 6,
    "kv_lora_rank": 4,
    "moe_shared_expert_intermediate_size": 6,
}


def test_latent_attention_with_both_norms_of_a_layer(tmp_path: Path) -> None:
    source = dist(tmp_path / "run", LATENT, LATENT_ARGS)
    reshard.convert(source, tmp_path / "ranks", "megatron:tp=2")
    assert reshard.verify(source, tmp_path / "ranks").ok
    reshard.convert(tmp_path / "ranks", tmp_path / "out", "megatron-dist")
    assert set(reshard.open(tmp_path / "out").tensors) == set(LATENT)


def test_down_projections_that_are_cut(tmp_path: Path) -> None:
    """As the local implementation has them; Transformer Engine's are whole on every rank."""
    source = dist(tmp_path / "run", LATENT, LATENT_ARGS)
    reshard.convert(source, tmp_path / "ranks", "megatron:tp=2")
    folder = tmp_path / "ranks" / "release"
    for rank in range(2):
        cut_down(folder / f"mp_rank_0{rank}" / "model_optim_rng.pt", rank)
    assert reshard.verify(source, tmp_path / "ranks").ok
    for target in ("megatron:tp=1", "megatron-dist"):
        out = tmp_path / target.replace(":", "-")
        reshard.convert(tmp_path / "ranks", out, target)
        assert reshard.verify(source, out).ok


def cut_down(path: Path, rank: int) -> None:
    """Keep a rank's rows of the down projections in its file."""
    from reshard.storage.inert import Record
    from reshard.storage.torch_file import TensorRef, open_torch_file

    data = path.read_bytes()

    def array(value: object) -> object:
        if not isinstance(value, TensorRef):
            return value
        kept = np.frombuffer(data, np.float32, value.numel, value.byte_offset)
        return kept.reshape(value.shape)

    root = open_torch_file(path).root
    assert isinstance(root, dict)
    model = {}
    for name, value in root["model"].items():
        found = array(value)
        if "_down_proj" in name and isinstance(found, np.ndarray):
            found = np.split(found, 2)[rank]
        model[name] = found
    args = root["args"]
    assert isinstance(args, Record)
    save(path, {**root, "args": args, "model": model})


NORMED = {
    "embedding.word_embeddings.weight": (20, 16),
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (2, 16),
    "decoder.layers.self_attention.linear_proj.weight": (2, 16, 16),
    "decoder.layers.self_attention.linear_qkv.weight": (2, 32, 16),
    "decoder.layers.self_attention.q_layernorm.weight": (2, 4),
    "decoder.layers.self_attention.k_layernorm.weight": (2, 4),
    "decoder.layers.mlp.linear_fc1.layer_norm_weight": (2, 16),
    "decoder.layers.mlp.linear_fc1.weight": (2, 20, 16),
    "decoder.layers.mlp.linear_fc2.weight": (2, 16, 10),
    "decoder.final_layernorm.weight": (16,),
    "output_layer.weight": (20, 16),
}


def without_arguments(root: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A folder whose common state has no arguments."""
    dist(root, shapes, {})
    save(root / "release" / "common.pt", {"checkpoint_version": 3.0})
    return root


def test_sizes_follow_from_shapes(tmp_path: Path) -> None:
    """The norms of queries tell the width of a head, and two equations the numbers of heads."""
    source = without_arguments(tmp_path / "run", NORMED)
    reshard.convert(source, tmp_path / "out", "hf", settings=FACTS)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    sizes = ("head_dim", "num_attention_heads", "num_key_value_heads", "vocab_size")
    assert {key: config[key] for key in sizes} == dict(zip(sizes, (4, 4, 2, 20), strict=True))
    reshard.convert(source, tmp_path / "ranks", "megatron:tp=2")
    assert reshard.verify(source, tmp_path / "ranks").ok


def test_a_size_that_is_stated_solves_the_others(tmp_path: Path) -> None:
    plain = {n: s for n, s in NORMED.items() if ".q_layernorm" not in n and ".k_l" not in n}
    source = without_arguments(tmp_path / "run", plain)
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "hf")
    assert caught.value.diagnostics[0].code == "unsolvable-size"
    assert caught.value.diagnostics[0].helps == (
        "state `num_key_value_heads`, `num_attention_heads` or `head_dim`, as the model's "
        "configuration does: `--set head_dim=N`",
    )
    done = reshard.convert(source, tmp_path / "out", "hf", settings={"head_dim": 4, **FACTS})
    texts = [item.render() for item in done.report.warnings]
    assert (
        "warning[defaulted-model-config]: `config.json` leaves to transformers what the source "
        "does not record\n"
        "  = note: without a value: `max_position_embeddings`\n"
        "  = note: it changes no number that the model computes\n"
        "  = help: state it, like `--set max_position_embeddings=4096`, if other programs read it"
    ) in texts
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)


def grouped_by_name(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
    """Experts as Transformer Engine's grouped linear layers have them: a number behind the name."""
    names = re.compile(r"local_experts\.(\d+)\.(.*)")
    tree["model"] = {names.sub(r"\2\1", name): value for name, value in tree["model"].items()}


def test_grouped_experts_of_ranks_are_numbered_over_the_model(tmp_path: Path) -> None:
    args = {**GROUPED.args, "num_attention_heads": 2, "num_query_groups": 2, "kv_channels": 4}
    run = RankForge(ep=2, experts=4, bias=False, args=args, change=grouped_by_name)
    reshard.convert(run.write(tmp_path / "run"), tmp_path / "out", "universal")
    training = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))["training"]
    names = [name for group in training["param_groups"] for name in group["params"]]
    experts = {name for name, _ in run.whole() if ".local_experts." in name}
    assert len(names) == len(set(names)) == len(run.whole()) // 3
    assert sum(".mlp.experts." in name for name in names) == len(experts)
