"""Every statement of a description that ships is obeyed: without it, something is read, written, or
refused in another way.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_described_read import NET, numbered
from test_described_shipped import CONFIG, meta, safetensors, sharded, verl
from test_described_write import gpt2, nanogpt, trainer

import reshard
from reshard.errors import ReshardError
from reshard.storage.inert import Record
from reshard.storage.pickle_writer import write_pickle
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import open_torch_file, read_small
from torch_trees import counted, write_tree

FILES = resources.files("reshard").joinpath("layouts", "files")
Signature = object


def shipped(name: str) -> str:
    """The text of a description."""
    return FILES.joinpath(f"{name}.ucl").read_text(encoding="utf-8")


def without_each_statement(text: str) -> Iterator[tuple[str, str]]:
    """Each statement, a block with all that is in it, and the text without it."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        said = line.strip()
        if not said or said.startswith(("#", "layout", "}")):
            continue
        end = at + 1
        if said.endswith("{"):
            end = next(i for i in range(at, len(lines)) if lines[i] == "    }") + 1
        yield said, "\n".join((*lines[:at], *lines[end:])) + "\n"


def read(folder: Path, text: Path) -> Signature:
    """All that reading a folder through a text says."""
    checkpoint = reshard.open(folder, layout=text)
    facts = checkpoint.inspect().to_json()
    for key in ("layout", "path", "root", "files", "nbytes"):
        facts.pop(key, None)
    tensors = {
        (name, state): (str(dtype), checkpoint.read(name, state).tobytes())
        for name, info in checkpoint.tensors.items()
        for state, dtype in info.dtypes.items()
    }
    return facts, checkpoint.training, tensors


def written(folder: Path, out: Path, target: str, layout: Path | None) -> Signature:
    """All that is written through a text."""
    names = None if layout is None else "source"
    done = reshard.convert(folder, out, target, layout=layout, names=names)
    files = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    return files, [item.render() for item in done.report.warnings]


def seen(check: Callable[[], Signature]) -> Signature:
    """What a check gives, or why it is refused."""
    try:
        return check()
    except ReshardError as error:
        return [item.code for item in error.diagnostics]


# ---- folders -------------------------------------------------------------------------------------


def lightning(folder: Path) -> None:
    optimizer = numbered(NET, [list(NET)])
    tree = {
        "state_dict": {f"model._orig_mod.{name}": value for name, value in NET.items()},
        "optimizer_states": [optimizer],
        "lr_schedulers": [{"last_epoch": 3}],
        "global_step": 4,
        "epoch": 1,
    }
    write_tree(folder / "last.ckpt", tree)


def one_file(folder: Path) -> None:
    optimizer = numbered(NET, [list(NET)])
    tree = {"model": {f"module.{n}": v for n, v in NET.items()}, "optimizer": optimizer, "epoch": 1}
    write_tree(folder / "x.pt", {**tree, "scheduler": {"last_epoch": 3}, "step": 4})


def named_file(folder: Path) -> None:
    """Names beside the numbers, in an order that shapes do not tell."""
    names = {"b": counted(4), "a": counted(4, start=9)}
    optimizer: Any = numbered(names, [["a", "b"]])
    optimizer["param_groups"][0]["param_names"] = ["a", "b"]
    write_tree(folder / "x.pt", {"model": names, "optimizer": optimizer})


def compiled(folder: Path) -> None:
    """What `torch.compile` makes of names, and a mask."""
    names = {"_orig_mod.transformer.wte.weight": counted(5, 4)}
    names["_orig_mod.transformer.h.0.attn.bias"] = counted(1)
    tree: dict[str, object] = {"model": names, "iter_num": 3, "model_args": {"n_layer": 1}}
    plain = {"transformer.wte.weight": counted(5, 4)}
    write_tree(folder / "ckpt.pt", {**tree, "optimizer": numbered(plain, [list(plain)]), "x": 1})


def whole_trainer(folder: Path) -> None:
    """A folder of the Trainer with every file that it may have."""
    trainer(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 7, "max_steps": 9}))
    write_tree(folder / "scaler.pt", {"scale": 2.0})
    for rank in range(2):
        write_tree(folder / f"rng_state_{rank}.pth", {"cpu": np.full(3, rank, np.uint8)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))


def named_trainer(folder: Path) -> None:
    """Names beside the numbers, for a model whose order nobody knows."""
    names = {"b": counted(4), "a": counted(4, start=9)}
    optimizer: Any = numbered(names, [["b", "a"]])
    optimizer["param_groups"][0]["param_names"] = ["b", "a"]
    safetensors(folder / "model.safetensors", dict(sorted(names.items())))
    write_tree(folder / "optimizer.pt", optimizer)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))


def of_order(order: str) -> Callable[[Path], None]:
    """A folder of the Trainer with a model of one of its orders, whose parameters are alike."""
    names = [
        name.replace("{layer}", "0")
        for name in re.findall(r'"([^"]+)"', order.partition(" when ")[0])
    ]
    kind = re.findall(r'model_type == "(\w+)"', order)[0]

    def make(folder: Path) -> None:
        weights = {f"{name}.weight": counted(2, start=at) for at, name in enumerate(names)}
        safetensors(folder / "model.safetensors", dict(sorted(weights.items())))
        write_tree(folder / "optimizer.pt", numbered(weights, [list(weights)]))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))

    return make


def whole_verl(folder: Path) -> None:
    """A folder of verl with every file that it may have, and in each a key that nobody knows."""
    verl(folder)
    for rank in range(2):
        for kind in ("model", "optim", "extra_state"):
            path = folder / f"{kind}_world_size_2_rank_{rank}.pt"
            tree: Any = open_torch_file(path).root
            write_tree(path, {**_arrays(tree), "note": kind})
    (folder / "huggingface").mkdir()
    (folder / "huggingface/config.json").write_text(json.dumps({"model_type": "unheard_of"}))


def named_verl(folder: Path) -> None:
    """Names beside the numbers, in an order that shapes do not tell."""
    names = {"b": counted(4), "a": counted(4, start=9)}
    optimizer: Any = numbered(names, [["a", "b"]])
    optimizer["param_groups"][0]["param_names"] = ["a", "b"]
    write_tree(folder / "model_world_size_1_rank_0.pt", names)
    write_tree(folder / "optim_world_size_1_rank_0.pt", optimizer)


def _arrays(value: object) -> Any:
    """A tree of a file with its tensors as arrays."""
    if isinstance(value, TensorRef):
        dtype = {"F32": np.float32, "U8": np.uint8}[str(value.dtype)]
        return np.frombuffer(read_small(value), dtype).reshape(value.shape)
    if isinstance(value, Record):
        args, state = (tuple(map(_arrays, value.args)), [_arrays(item) for item in value.state])
        return Record(value.module, value.name, args, value.how, state)
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_arrays, value))  # type: ignore[call-overload]
    return value


def vllm(folder: Path, *, heads: int | None = 2) -> None:
    """Args: heads: of keys and values, as the configuration says; None for those of the queries."""
    prefix = "model.layers.0"
    rows = 16 + 8 * (heads or 4)
    weights = {
        "model.embed_tokens.weight": counted(64, 16),
        f"{prefix}.self_attn.qkv_proj.weight": counted(rows, 16),
        f"{prefix}.self_attn.qkv_proj.bias": counted(rows),
        f"{prefix}.self_attn.o_proj.weight": counted(16, 16, start=9),
        f"{prefix}.self_attn.o_proj.bias": counted(16),
        f"{prefix}.mlp.gate_up_proj.weight": counted(24, 16, start=5),
        f"{prefix}.mlp.gate_up_proj.bias": counted(24),
        f"{prefix}.mlp.down_proj.weight": counted(16, 12, start=3),
        f"{prefix}.mlp.down_proj.bias": counted(16),
        "model.norm.weight": counted(16, start=1),
        "model.norm.bias": counted(16, start=1),
        "lm_head.weight": counted(64, 16, start=2),
    }
    safetensors(folder / "model-rank-0-part-0.safetensors", weights)
    _config(folder, heads, {})


def other_home(folder: Path) -> None:
    """Tensors of vLLM with their configuration in one file of another kind."""
    vllm(folder / "vllm")
    one = reshard.open(folder / "vllm")
    tree = {name: one.read(name) for name in one.tensors}
    write_tree(folder / "run" / "x.pt", {"model": tree, "config": CONFIG})
    text = 'layout one { file "x.pt" { state param at "model/{name}" run config = "config" } }'
    (folder / "one.ucl").write_text(text)


def shuffled_gpt2(folder: Path) -> None:
    """A GPT-2 of the Trainer whose optimizer counts parameters in another order, and says which."""
    weights = gpt2(folder)
    names = sorted(weights)
    optimizer: Any = numbered({name: weights[name] for name in names}, [names])
    optimizer["param_groups"][0]["param_names"] = names
    write_tree(folder / "optimizer.pt", optimizer)


def _config(folder: Path, heads: int | None, more: Mapping[str, object]) -> None:
    config = {**CONFIG, **more, "num_key_value_heads": heads}
    text = json.dumps({key: value for key, value in config.items() if value is not None})
    (folder / "config.json").write_text(text)


def tensorrt(cut: int | None, *, heads: int | None = 2) -> Callable[[Path], None]:
    """Args: cut: the dimension along which the embedding is cut; heads: as for `vllm`."""

    def make(folder: Path) -> None:
        prefix = "transformer.layers.0"
        shapes = {
            f"{prefix}.attention.qkv": (16 + 8 * (heads or 4), 16),
            f"{prefix}.attention.dense": (16, 16),
            f"{prefix}.mlp.fc": (12, 16),
            f"{prefix}.mlp.gate": (12, 16),
            f"{prefix}.mlp.proj": (16, 12),
            f"{prefix}.input_layernorm": (16,),
            "transformer.ln_f": (16,),
        }
        weights = {f"{name}.weight": counted(*shape) for name, shape in shapes.items()}
        weights |= {f"{name}.bias": counted(shape[0]) for name, shape in shapes.items()}
        weights["transformer.vocab_embedding.weight"] = counted(61, 16)
        weights["lm_head.weight"] = counted(61, 16, start=2)
        safetensors(folder / "rank0.safetensors", weights)
        mapping = {"world_size": 1, "tp_size": 1}
        where = {"use_parallel_embedding": cut is not None, "embedding_sharding_dim": cut or 0}
        _config(folder, heads, {"mapping": mapping, **where})

    return make


def llama(folder: Path) -> None:
    """A model in the names of transformers, which other names are made of."""
    released = folder.with_name(f"{folder.name}-meta")
    meta(released, 1, 1)
    reshard.convert(released, folder, "hf", settings={"max_position_embeddings": 8})
    (folder / "params.json").unlink(missing_ok=True)


def biased_nanogpt(folder: Path) -> None:
    """A nanoGPT with biases, as GPT-2 has them."""
    source = folder.with_name(f"{folder.name}-gpt2")
    gpt2(source)
    reshard.convert(source, folder, "nanogpt")


def _tied(folder: Path) -> None:
    safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": counted(4, 2)})
    (folder / "config.json").write_text(
        json.dumps({"tie_word_embeddings": True, "model_type": "x"})
    )


ORDERS = [
    line.strip() for line in shipped("trainer").splitlines() if line.strip().startswith("order")
]


def accelerate_whole(folder: Path) -> None:
    names = {"a.weight": counted(3, 2), "a.bias": counted(3)}
    write_tree(folder / "pytorch_model_fsdp.bin", names)
    write_tree(folder / "optimizer.bin", numbered(names, [list(names)]))


def accelerate_ranks(folder: Path) -> None:
    verl(folder)
    for rank in range(2):
        for kind, name in (("model", "pytorch_model_fsdp"), ("optim", "optimizer")):
            path = folder / f"{kind}_world_size_2_rank_{rank}.pt"
            path.rename(folder / f"{name}_0_rank{rank}.bin")
        (folder / f"extra_state_world_size_2_rank_{rank}.pt").unlink()


def torch_checkpointing(folder: Path) -> None:
    """Two ranks with a DTensor each, something that all have, and keys that nobody knows."""
    whole = counted(5, 2)
    for rank in range(2):
        rows = sharded(whole[3 * rank : 3 * rank + 3].copy(), (5, 2), rank, 2, [3 * rank, 0])
        write_tree(folder / f"model_{rank}.pt", {"w": rows, "b": counted(2), "note": 1})
        state = {"w": {"exp_avg": rows, "step": np.array(3, np.float32)}}
        groups = [{"lr": 0.1, "params": ["w"]}]
        optimizer = {"state": state, "param_groups": groups, "note": 1}
        write_tree(folder / f"optimizer_{rank}.pt", optimizer)
        write_tree(folder / f"train_state_{rank}.pt", {"step": 4, "tokens": 9})
    (folder / "metadata.pkl").write_bytes(write_pickle({"version": 1}))


def nanotron(folder: Path) -> None:
    """Two tensor-parallel and two data-parallel ranks; a weight that is cut, one that is whole."""
    embed, norm = counted(4, 3), counted(3)
    safetensors(folder / "model" / "norm" / "model_weight.safetensors", {"data": norm})
    for kind in ("optimizer", "lr_scheduler", "random"):
        (folder / kind).mkdir()
    for tp in range(2):
        rows = embed[2 * tp : 2 * tp + 2]
        pair = f"None,None,None|None,None,None#{2 * tp},{2 * tp + 2},None|None,None,None"
        said = {"unsharded_shape": "(4, 3)", "local_global_slices_pairs": pair}
        file = f"model_weight_pp-rank-0-of-1_tp-rank-{tp}-of-2.safetensors"
        safetensors(folder / "model" / "embed" / file, {"data": rows}, said)
        write_tree(
            folder / "lr_scheduler" / f"lr_scheduler_pp-0-of-1_tp-{tp}-of-2_exp-0-of-1.pt",
            {"last_epoch": 3, "base_lrs": [0.1]},
        )
        for dp in range(2):
            state, masters = {}, {}
            shares = (rows.reshape(-1)[3 * dp : 3 * dp + 3], norm[2 * dp : 2 * dp + 2])
            names = dict(enumerate(("module.embed.weight", "module.norm.weight")))
            for number, part in enumerate(map(np.ascontiguousarray, shares)):
                state[number] = {"step": np.array(3, np.float32), "exp_avg": part}
                masters[names[number]] = part + 1
            at = f"pp-0-of-1_dp-{dp}-of-2_tp-{tp}-of-2_exp-0-of-1"
            write_tree(
                folder / "optimizer" / f"optimizer_{at}.pt",
                {
                    "state": state,
                    "param_groups": [{"lr": 0.1, "params": [0, 1]}],
                    "names": names,
                    "gradient_accumulator": masters,
                },
            )
            write_tree(folder / "random" / f"tp-{tp}_dp-{dp}.pt", {"seed": 4 * tp + dp})
    metadata = {"version": "1.5", "metas": {"last_train_step": 4}}
    (folder / "checkpoint_metadata.json").write_text(json.dumps(metadata))
    (folder / "model_config.json").write_text(json.dumps({"hidden_size": 3}))


READ: Mapping[str, list[Callable[[Path], None]]] = {
    "accelerate_ranks": [accelerate_ranks],
    "accelerate_whole": [accelerate_whole],
    "lightning": [lightning],
    "meta": [lambda folder: meta(folder, 2, 1) and None],
    "meta_llama3": [lambda folder: meta(folder, 2, 0) and None],
    "nanogpt": [nanogpt, compiled],
    "nanotron": [nanotron],
    "single_file": [one_file, named_file],
    "tensorrt_llm": [tensorrt(None), tensorrt(None, heads=None)],
    "torch_checkpointing": [torch_checkpointing],
    "trainer": [whole_trainer, named_trainer, *map(of_order, ORDERS)],
    "verl": [whole_verl, named_verl],
    "vllm_sharded": [vllm, lambda folder: vllm(folder, heads=None)],
}
"""Folders that a description is of."""

WRITTEN: Mapping[str, list[tuple[Callable[[Path], None], str, bool]]] = {
    "meta": [(llama, "tp=2", False)],
    "meta_llama3": [(llama, "tp=2", False)],
    "nanogpt": [(shuffled_gpt2, "", False)],
    "nanotron": [(nanotron, "tp=2,dp=3", True)],
    "tensorrt_llm": [(tensorrt(cut), "tp=2", True) for cut in (None, 0, 1)],
    "trainer": [(whole_trainer, "", True), (biased_nanogpt, "", False)],
    "verl": [(whole_verl, "dp=3", True), (_tied, "dp=2", False), (llama, "dp=2", False)],
    "vllm_sharded": [(vllm, "tp=2", True), (other_home, "tp=2", False), (llama, "tp=2", False)],
}
"""What is written as it: a source, the mesh, and whether the source is of it too."""


def test_every_description_is_tried() -> None:
    assert sorted(READ) == sorted(item.name.removesuffix(".ucl") for item in FILES.iterdir())


@pytest.mark.parametrize("name", READ)
def test_every_statement_is_obeyed(name: str, tmp_path: Path) -> None:
    text = tmp_path / "x.ucl"
    text.write_text(shipped(name), encoding="utf-8")
    number = itertools.count()
    checks: list[Callable[[], Signature]] = []
    for make in READ[name]:
        folder = tmp_path / f"read{next(number)}"
        make(folder)
        checks.append(lambda folder=folder: read(folder, text))  # type: ignore[misc]
    for make, mesh, is_own in WRITTEN.get(name, ()):
        folder = tmp_path / f"source{next(number)}"
        make(folder)
        target = f"{text}:{mesh}" if mesh else str(text)
        layout = text if is_own else folder / "one.ucl" if (folder / "one.ucl").exists() else None
        source = folder / "run" if (folder / "run").exists() else folder
        checks.append(
            lambda source=source, target=target, layout=layout: written(  # type: ignore[misc]
                source, tmp_path / f"out{next(number)}", target, layout
            )
        )
    whole = [check() for check in checks]
    idle = []
    for statement, mutated in without_each_statement(shipped(name)):
        text.write_text(mutated, encoding="utf-8")
        if all(seen(check) == known for check, known in zip(checks, whole, strict=True)):
            idle.append(statement)
    assert not idle


def test_a_second_optimizer_is_named(tmp_path: Path) -> None:
    """One is read; a run that goes on without the other would not be the run."""
    folder = tmp_path / "run"
    folder.mkdir()
    names = list(NET)
    parts = [{n: NET[n] for n in names[:1]}, {n: NET[n] for n in names[1:]}]
    tree = {
        "state_dict": dict(NET),
        "optimizer_states": [numbered(part, [list(part)]) for part in parts],
        "lr_schedulers": [{"last_epoch": 3}, {"last_epoch": 4}],
        "global_step": 4,
    }
    write_tree(folder / "last.ckpt", tree)
    for target in ("universal", "dcp"):
        done = reshard.convert(folder, tmp_path / target, target)
        assert done.report.warnings[0].render() == (
            "warning[other-optimizers]: last.ckpt has 2 optimizers, and the states of one are "
            "read\n"
            "  = note: not read: `optimizer_states[1]`\n"
            "  = note: parameters that only the others train are taken to be frozen: "
            f"{', '.join(f'`{name}`' for name in names[1:])}\n"
            "  = note: a universal checkpoint keeps the others as they are; other targets "
            "lack them\n"
            "  = help: go on training from the source; `--states weights` converts the weights"
        )
