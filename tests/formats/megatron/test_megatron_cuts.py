"""How tensors lie over tensor-parallel ranks follows from sizes, and from what the ranks hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_forge import Forge, Kind, image_bytes, namespace, save
from megatron_targets import arguments
from test_megatron_errors import message

import reshard
from reshard.storage.inert import Global, Record


@dataclass(frozen=True)
class Model(Forge):
    """A model with further tensors."""

    more: tuple[Kind, ...] = ()

    def outside(self) -> tuple[list[Kind], list[Kind]]:
        """With the further ones at the end."""
        before, after = super().outside()
        return before, [*after, *self.more]


BERT = (
    Kind("lm_head.dense.weight", (8, 8)),
    Kind("lm_head.dense.bias", (8,)),
    Kind("lm_head.layer_norm.weight", (8,)),
    Kind("pooler.dense.weight", (8, 8)),
    Kind("pooler.dense.bias", (8,)),
    Kind("binary_head.weight", (2, 8)),
    Kind("binary_head.bias", (2,)),
    Kind("output_layer.bias", (24,), "rows"),
)


def assert_whole(run: Forge, root: Path) -> None:
    """Every tensor of a run comes out as it was."""
    found = reshard.open(run.write(root))
    for (name, state), value in run.whole().items():
        assert np.array_equal(np.asarray(found.read(name, state)), value), (name, state)


def test_linear_layers_of_the_heads_are_whole_on_every_rank(tmp_path: Path) -> None:
    run = Model(tp=2, more=BERT, bias=False)
    assert_whole(run, tmp_path / "run")
    found = reshard.open(tmp_path / "run")
    assert found.tensors["pooler.dense.weight"].shape == (8, 8)
    assert found.tensors["lm_head.dense.weight"].shape == (8, 8)


@pytest.mark.parametrize("cut", ["copy", "rows"])
def test_a_tower_may_be_cut_or_be_whole_on_every_rank(cut: str, tmp_path: Path) -> None:
    tower = "vision_model.decoder.layers.0."
    columns = "columns" if cut == "rows" else "copy"
    more = (
        Kind(f"{tower}self_attention.linear_qkv.weight", (18, 6), cut),
        Kind(f"{tower}self_attention.linear_qkv.bias", (18,), cut),
        Kind(f"{tower}self_attention.linear_proj.weight", (6, 6), columns),
        Kind(f"{tower}mlp.linear_fc1.weight", (10, 6), cut),
        Kind(f"{tower}mlp.linear_fc2.weight", (6, 10), columns),
    )
    assert_whole(Model(tp=2, more=more, bias=False), tmp_path)


def test_a_tower_without_gates_beside_a_gated_model(tmp_path: Path) -> None:
    more = (
        Kind("vision_projection.encoder.linear_fc1.weight", (10, 6), "rows"),
        Kind("vision_projection.encoder.linear_fc2.weight", (6, 10), "columns"),
    )
    assert_whole(Model(tp=2, more=more, gated=True), tmp_path)


def test_a_bias_of_zeros_is_whole_where_its_weight_is(tmp_path: Path) -> None:
    tower = "vision_model.decoder.layers.0.self_attention.linear_qkv"
    more = (Kind(f"{tower}.weight", (18, 6)), Kind(f"{tower}.bias", (18,)))
    run = Model(tp=2, more=more, bias=False)
    whole = run.whole()
    whole[f"{tower}.bias", "param"][:] = 0

    class Zeros(Model):
        def whole(self) -> Any:
            return whole

    assert_whole(Zeros(tp=2, more=more, bias=False), tmp_path)


@pytest.mark.parametrize("whole", [True, False], ids=["copied", "cut"])
def test_a_down_projection_by_either_implementation(whole: bool, tmp_path: Path) -> None:
    name = "decoder.layers.0.self_attention.linear_q_down_proj.weight"
    more = (Kind(name, (6, 8), "copy" if whole else "rows"),)
    assert_whole(Model(tp=2, more=more), tmp_path)


STATED: dict[str, object] = {
    "ffn_hidden_size": 12,
    "moe_ffn_hidden_size": 12,
    "moe_shared_expert_intermediate_size": 12,
    "kv_channels": 4,
    "mamba_num_heads": 8,
    "mamba_head_dim": 2,
    "q_lora_rank": 6,
    "kv_lora_rank": 4,
    "qk_pos_emb_head_dim": 2,
}


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("embedding.word_embeddings.weight", (24, 8), 0),
        ("output_layer.weight", (24, 8), 0),
        ("decoder.layers.0.self_attention.linear_qkv.weight", (24, 8), 0),
        ("encoder.layers.0.self_attention.query_key_value.weight", (24, 8), 0),
        ("decoder.layers.0.self_attention.linear_proj.weight", (8, 8), 1),
        ("encoder.layers.0.self_attention.dense.weight", (8, 8), 1),
        ("encoder.layers.0.attention.dense.weight", (8, 8), 1),
        ("decoder.layers.0.mlp.linear_fc2.weight", (8, 12), 1),
        ("decoder.layers.0.mlp.shared_experts.linear_fc2.weight", (8, 12), 1),
        ("decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight", (8, 12), 1),
        ("encoder.layers.0.mlp.dense_4h_to_h.weight", (8, 12), 1),
        ("decoder.layers.0.mixer.A_log", (8,), 0),
        ("decoder.layers.0.mixer.D", (8,), 0),
        ("decoder.layers.0.mixer.dt_bias", (8,), 0),
        ("decoder.layers.0.mixer.norm.weight", (16,), 0),
        ("decoder.layers.0.self_attention.linear_q_down_proj.weight", (6, 8), 0),
        ("decoder.layers.0.self_attention.linear_kv_down_proj.weight", (6, 8), 0),
        ("gate.layers.0.self_attention.linear_qkv.weight", (32, 8), 0),
        ("latent.layers.0.self_attention.linear_proj.weight", (8, 12), 1),
    ],
)
def test_equal_pieces_of_the_stated_size_are_pieces(
    name: str, shape: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Same(Model):
        def whole(self) -> Any:
            whole = super().whole()
            half, _ = np.split(whole[name, "param"], 2, axis)
            whole[name, "param"][:] = np.concatenate([half, half], axis)
            return whole

    known = {own for own, _ in Forge(bias=False).whole()}
    more = () if name in known else (Kind(name, shape, ("rows", "columns")[axis]),)
    special = {
        "gate": {"attention_output_gate": True},
        "latent": {"multi_latent_attention": True, "v_head_dim": 6},
    }
    args = {**STATED, **special.get(name.partition(".")[0], {})}
    assert_whole(Same(tp=2, more=more, bias=False, args=args), tmp_path)


OTHERS = (
    Kind("word_embeddings_for_head.weight", (24, 8), "rows"),
    Kind("lm_head.bias", (24,), "rows"),
    Kind("embedding.position_embeddings.weight", (6, 8)),
    Kind("embedding.tokentype_embeddings.weight", (2, 8)),
    Kind("decoder.layers.0.input_norm.bias", (8,)),
    Kind("decoder.layers.0.norm1.weight", (8,)),
    Kind("decoder.layers.0.inter_attention.linear_q.weight", (8, 8), "rows"),
    Kind("decoder.layers.0.inter_attention.linear_q.bias", (8,), "rows"),
    Kind("decoder.layers.0.inter_attention.linear_kv.weight", (16, 8), "rows"),
    Kind("decoder.layers.0.inter_attention.query.weight", (8, 8), "rows"),
    Kind("decoder.layers.0.inter_attention.key_value.weight", (16, 8), "rows"),
    Kind("decoder.layers.0.inter_attention.dense.weight", (8, 8), "columns"),
    Kind("decoder.layers.0.inter_attention.dense.bias", (8,)),
    Kind("decoder.layers.0.self_attention.linear_q_proj.weight", (12, 8), "rows"),
    Kind("decoder.layers.0.self_attention.linear_kv_up_proj.weight", (12, 8), "rows"),
    Kind("decoder.layers.0.self_attention.core_attention.softmax_offset", (4,), "rows"),
    Kind("decoder.layers.0.mixer.out_proj.weight", (8, 16), "columns"),
    Kind("mtp.layers.0.eh_proj.weight", (8, 16), "rows"),
    Kind("encoder.layers.0.mlp.dense_h_to_4h.weight", (24, 8), "halves"),
    Kind("encoder.layers.0.mlp.dense_h_to_4h.bias", (24,), "halves"),
    Kind("encoder.layers.0.mlp.dense_4h_to_h.weight", (8, 12), "columns"),
    Kind("encoder.layers.0.mlp.dense_4h_to_h.bias", (8,)),
)


def test_modules_that_no_shipped_model_has(tmp_path: Path) -> None:
    def change(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        tree["model"]["decoder.rotary_pos_emb.inv_freq"] = np.ones(1, np.float32)

    run = Model(tp=2, more=OTHERS, bias=False, change=change)
    assert_whole(run, tmp_path)
    found = reshard.open(tmp_path)
    assert found.tensors["decoder.rotary_pos_emb.inv_freq"].shape == (1,)


def test_the_entry_that_a_null_tokenizer_adds_is_kept(tmp_path: Path) -> None:
    args = {"vocab_size": 20, "tokenizer_type": "NullTokenizer", "make_vocab_size_divisible_by": 4}
    run = Forge(tp=2, bias=False, args={**args, "normalization": "RMSNorm"})
    run.write(tmp_path / "run")
    for target in ("megatron:tp=1", "megatron-dist", "universal"):
        out = tmp_path / target.replace(":", "-")
        reshard.convert(tmp_path / "run", out, target)
        found = reshard.open(out)
        for state in ("param", "exp_avg"):
            whole = run.whole()["embedding.word_embeddings.weight", state]
            got = np.asarray(found.read("embedding.word_embeddings.weight", state))
            assert np.array_equal(got, whole[:21]), (target, state)
    (oddity,) = [o for o in reshard.inspect(tmp_path / "run").oddities if "padding" in o.headline]
    assert oddity.headline == "3 of 24 rows of the vocabulary are padding"
    assert oddity.notes[0] == (
        "the arguments say `vocab_size=20`, to which `NullTokenizer` adds one; "
        "the rows behind it are left out"
    )


class Padded(Forge):
    """A run of 24 rows, of which the last two are zero."""

    def whole(self) -> Any:
        whole = super().whole()
        for name, state in whole:
            if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
                whole[name, state][22:] = 0
        return whole


CUT = (
    "warning[padded-vocabulary]: 14 of 24 rows of the vocabulary are removed as padding\n"
    "  = note: `--set vocab_size=10` states that the rows after it are padding\n"
    "  = note: 12 of the 14 rows of `embedding.word_embeddings.weight` (param) are not zero\n"
)


@pytest.mark.parametrize("way", [[], ["universal"]])
def test_rows_beyond_a_size_that_is_set_are_cut_and_counted(tmp_path: Path, way: list[str]) -> None:
    args = {"make_vocab_size_divisible_by": 12, "normalization": "RMSNorm"}
    source = Padded(tp=2, bias=False, args=args).write(tmp_path / "run")
    for to in way:
        source = reshard.convert(source, tmp_path / to, to).path
    done = reshard.convert(source, tmp_path / "out", "megatron:tp=1", settings={"vocab_size": 10})
    [found] = [o for o in done.report.warnings if o.code == "padded-vocabulary"]
    assert found.render().startswith(CUT)
    assert reshard.verify(source, tmp_path / "out", settings={"vocab_size": 10}).ok
    proof = reshard.roundtrip(source, "megatron:tp=1", settings={"vocab_size": 10})
    assert proof.ok
    assert [o.render()[: len(CUT)] for o in proof.ways[0].warnings if o.code == found.code] == [CUT]


def test_a_stated_vocabulary_that_fills_its_rows_has_no_further_entry(tmp_path: Path) -> None:
    args = {"vocab_size": 24, "tokenizer_type": "NullTokenizer"}
    run = Forge(tp=2, args=args)
    assert_whole(run, tmp_path)


# Values of a state dict that are no plain tensors.


def stream(data: bytes) -> Record:
    """An `io.BytesIO`."""
    return Record("_io", "BytesIO", (), "newobj", [(data, 0, None)])


def test_states_of_modules_in_streams_are_kept(tmp_path: Path) -> None:
    data = image_bytes({"recipe": "delayed"})
    name = "decoder.layers.0.mlp.linear_fc1._extra_state"

    def change(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        tree["model"][name] = stream(data)
        tree["model"]["decoder.layers.0.mlp.linear_fc2._extra_state"] = stream(b"")
        tree["model"]["decoder.layers.0.count"] = 3

    Forge(change=change).write(tmp_path / "run")
    key = f"mp_rank_00/model_optim_rng.pt:0:{name}"
    reshard.convert(tmp_path / "run", tmp_path / "out", "universal")
    for folder in ("run", "out"):
        kept = np.asarray(reshard.open(tmp_path / folder).read(key, "extra"))
        assert kept.tobytes() == data
    assert [str(item.key) for item in reshard.inspect(tmp_path / "run").left] == [
        "model.decoder.layers.0.count"
    ]


def test_a_tensor_of_a_class_of_its_own(tmp_path: Path) -> None:
    module = "transformer_engine.pytorch.tensor.float8_tensor"
    make = Global(module, "Float8Tensor._make_in_reduce_ex")

    def change(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        name = "decoder.layers.0.mlp.linear_fc2.weight"
        tree["model"][name] = Record(make.module, make.name, ((8, 12),))

    Forge(change=change).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[tensor-subclass]: `decoder.layers.0.mlp.linear_fc2.weight` is a `Float8Tensor`, "
        "which reshard does not read",
        "  = note: in mp_rank_00/model_optim_rng.pt; the class is of "
        "`transformer_engine.pytorch.tensor.float8_tensor`",
        "  = note: only that class knows how its elements are made of several tensors",
        "  = help: load it in Megatron, and save it as `torch_dist`, which stores plain tensors",
    ]


# Which rank wrote a file.


def by_rank(order: dict[tuple[int, int, int], int]) -> Forge:
    """A run whose files tell which rank of all wrote them."""

    def change(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        more = {"normalization": "RMSNorm", "rank": order[place]}
        args = {**tree["args"].attributes, **more}
        tree["args"] = namespace(**args)

    return Forge(tp=2, pp=2, stages=(1, 1), bias=False, change=change)


def test_files_of_ranks_that_were_exchanged(tmp_path: Path) -> None:
    by_rank({(0, 0, 0): 1, (1, 0, 0): 0, (0, 1, 0): 4, (1, 1, 0): 5}).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        "error[renamed-file]: .../iter_0000003/mp_rank_00_000/model_optim_rng.pt was written by "
        "rank 1, which has tp=1",
        "  = note: its folder's name says tp=0, pp=0, ep=0",
        "  = note: `rank` in its arguments; the name shows which part of the model a file contains",
        "  = help: restore the original names of the folders, or copy the checkpoint again",
    ]


def test_files_of_stages_that_were_exchanged(tmp_path: Path) -> None:
    by_rank({(0, 0, 0): 4, (1, 0, 0): 5, (0, 1, 0): 0, (1, 1, 0): 1}).write(tmp_path)
    assert message(tmp_path, tmp_path)[0] == (
        "error[renamed-file]: .../iter_0000003/mp_rank_00_001/model_optim_rng.pt was written by "
        "rank 0, which has an earlier stage than that of rank 4"
    )


def test_files_that_tell_their_ranks(tmp_path: Path) -> None:
    run = by_rank({(0, 0, 0): 0, (1, 0, 0): 1, (0, 1, 0): 4, (1, 1, 0): 5})
    assert_whole(run, tmp_path / "run")
    reshard.convert(tmp_path / "run", tmp_path / "out", "megatron:tp=2,pp=2,dp=3")
    told = {}
    for folder in sorted((tmp_path / "out" / "iter_0000003").iterdir()):
        told[folder.name] = arguments(tmp_path / "out", folder.name)["rank"]
    assert list(told.values()) == [0, 6, 1, 7]


def test_files_of_ranks_beside_a_distributed_checkpoint(tmp_path: Path) -> None:
    Forge().write(tmp_path)
    folder = tmp_path / "iter_0000003"
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    save(folder / "common.pt", {"iteration": 3})
    assert message(tmp_path, tmp_path) == [
        "error[mixed-source]: .../iter_0000003 holds two checkpoints: files of ranks, and a "
        "distributed one",
        "  = note: it has `mp_rank_*` folders and `metadata.json`",
        "  = note: Megatron loads the distributed one, even if it is the older one",
        "  = help: move one of them into a folder of its own",
    ]


# What all ranks say alike.


def otherwise(change: Any) -> Forge:
    """A run of which the last rank's file says something else."""

    def last(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        if place == (1, 1, 0):
            change(tree)

    return Forge(tp=2, pp=2, stages=(1, 1), change=last)


def argument(tree: dict[str, Any]) -> None:
    tree["args"] = namespace(**{**tree["args"].attributes, "num_attention_heads": 4})


def schedule(tree: dict[str, Any]) -> None:
    tree["opt_param_scheduler"] = {"num_steps": 13}


def rate(tree: dict[str, Any]) -> None:
    tree["optimizer"]["param_groups"][0]["lr"] = 0.25


def argument_of_one(tree: dict[str, Any]) -> None:
    tree["args"] = namespace(**{**tree["args"].attributes, "rotary_base": 500000})


def argument_of_others(tree: dict[str, Any]) -> None:
    values = dict(tree["args"].attributes)
    del values["num_attention_heads"]
    tree["args"] = namespace(**values)


def schedule_of_others(tree: dict[str, Any]) -> None:
    del tree["opt_param_scheduler"]


def iteration(tree: dict[str, Any]) -> None:
    tree["iteration"] = 4


def operations(tree: dict[str, Any]) -> None:
    tree["num_floating_point_operations_so_far"] = 8


def multiplier(tree: dict[str, Any]) -> None:
    tree["optimizer"]["param_groups"][0]["wd_mult"] = 0.25


def setting_of_one(tree: dict[str, Any]) -> None:
    tree["optimizer"]["param_groups"][0]["max_lr"] = 0.75


GROUP = "settings of the param group with wd_mult=1.0, is_expert_parallel=False"


@pytest.mark.parametrize(
    ("change", "what", "key", "first", "other"),
    [
        (argument_of_one, "settings of the run", "rotary_base", "not there", "500000"),
        (argument_of_others, "settings of the run", "num_attention_heads", "2", "not there"),
        (schedule_of_others, "settings of `opt_param_scheduler`", "num_steps", "12", "not there"),
        (setting_of_one, GROUP, "max_lr", "not there", "0.75"),
        (argument, "settings of the run", "num_attention_heads", "2", "4"),
        (schedule, "settings of `opt_param_scheduler`", "num_steps", "12", "13"),
        (rate, GROUP, "lr", "0.5", "0.25"),
        (iteration, "settings of the run", "iteration", "3", "4"),
        (
            *(operations, "settings of the run", "num_floating_point_operations_so_far"),
            *("not there", "8"),
        ),
    ],
    ids=[
        "argument of one",
        "argument of others",
        "schedule of others",
        "setting of one",
        *("argument", "schedule", "rate", "iteration", "operations"),
    ],
)
def test_ranks_that_say_other_things(
    change: Any, what: str, key: str, first: str, other: str, tmp_path: Path
) -> None:
    otherwise(change).write(tmp_path)
    assert message(tmp_path, tmp_path) == [
        f"error[mixed-runs]: the {what} differ between ranks",
        f"  = note: `{key}` is {first} in mp_rank_00_000/model_optim_rng.pt, "
        f"and {other} in mp_rank_01_001/model_optim_rng.pt",
        "  = help: the files may be from different runs or steps; use the files of one run and "
        "one step",
    ]


def test_the_iteration_that_a_run_began_with_hides_no_other(tmp_path: Path) -> None:
    """Arguments have one, which is the same on all ranks."""

    def change(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        tree["args"] = namespace(**{**tree["args"].attributes, "iteration": 1})
        tree["iteration"] = 4 if place == (1, 1, 0) else 3

    Forge(tp=2, pp=2, stages=(1, 1), change=change).write(tmp_path)
    assert message(tmp_path, tmp_path)[1].startswith("  = note: `iteration` is 3 in ")


def test_a_parameter_in_two_param_groups(tmp_path: Path) -> None:
    """What tells groups apart differs between the ranks of one parameter."""
    otherwise(multiplier).write(tmp_path)
    name = "decoder.layers.1.self_attention.linear_proj.weight"
    assert message(tmp_path, tmp_path) == [
        f"error[mixed-runs]: the settings of the param group of `{name}` differ between ranks",
        "  = note: `wd_mult` is 1.0 in one rank, and 0.25 in another",
        "  = help: the files may be from different runs or steps; use the files of one run and "
        "one step",
    ]


def test_what_belongs_to_one_rank_may_differ(tmp_path: Path) -> None:
    def change(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        own = {"rank": place[0] + 2 * place[1], "local_rank": place[0], "save": f"/node{place[0]}"}
        own |= {"log": "/log" if place[0] else "log"}
        tree["args"] = namespace(**{**tree["args"].attributes, **own})

    assert_whole(Forge(tp=2, pp=2, stages=(1, 1), change=change), tmp_path)


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("size", [4, 8])
def test_a_tensor_that_the_optimizer_does_not_count(size: int, pp: int, tmp_path: Path) -> None:
    """Shapes show which it is; where they do not, the user says it."""

    def change(place: tuple[int, int, int], tree: dict[str, Any]) -> None:
        tree["model"]["rope.extra"] = np.arange(size, dtype="float32")

    stages = (2,) if pp == 1 else (1, 1)
    forge = Forge(tp=2, pp=pp, stages=stages)
    plain, run = tmp_path / "plain", tmp_path / "run"
    forge.write(plain)
    replace(forge, change=change).write(run)
    if size == 8:  # that of a bias
        assert message(run, run)[0].endswith(
            "model_optim_rng.pt numbers 9 parameters where 10 fit it"
            if pp == 1
            else "model_optim_rng.pt numbers 4 parameters where 5 fit it"
        )
        assert "  = help: exclude what is no parameter with `--leave-out NAME`" in message(run, run)
    out = tmp_path / "out"
    reshard.convert(run, out, "universal", leave_out=["rope.*"])
    assert reshard.verify(plain, out).ok
