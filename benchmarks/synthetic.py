"""Checkpoints of any size, written without a framework and without reshard's own writers.

All numbers are random, finite, and exact in bf16, so that weights are their master weights. The
model is a Llama whose number of layers follows from the size.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Shape = tuple[int, ...]
_HALVES = np.frombuffer(os.urandom(1 << 22), np.uint16) & 0xBFFF
_BLOCKS = {2: _HALVES.tobytes(), 4: (_HALVES.astype(np.uint32) << 16).tobytes()}
_PERIOD = len(_HALVES)
_HIDDEN, _INNER, _HEADS, _GROUPS, _VOCAB = 2048, 5632, 16, 8, 16384
_HEAD = _HIDDEN // _HEADS


@dataclass(frozen=True)
class Model:
    """A Llama of so many layers."""

    layers: int

    @staticmethod
    def of_size(numel: float) -> Model:
        """The model that has about so many parameters."""
        ends = 2 * _VOCAB * _HIDDEN
        return Model(max(1, round((numel - ends) / (Model(1).numel - ends))))

    @property
    def numel(self) -> int:
        """Elements of all weights."""
        return sum(prod(shape) for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Names as transformers has them, with shapes."""
        yield "model.embed_tokens.weight", (_VOCAB, _HIDDEN)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.input_layernorm.weight", (_HIDDEN,)
            yield f"{at}.self_attn.q_proj.weight", (_HIDDEN, _HIDDEN)
            yield f"{at}.self_attn.k_proj.weight", (_GROUPS * _HEAD, _HIDDEN)
            yield f"{at}.self_attn.v_proj.weight", (_GROUPS * _HEAD, _HIDDEN)
            yield f"{at}.self_attn.o_proj.weight", (_HIDDEN, _HIDDEN)
            yield f"{at}.post_attention_layernorm.weight", (_HIDDEN,)
            yield f"{at}.mlp.gate_proj.weight", (_INNER, _HIDDEN)
            yield f"{at}.mlp.up_proj.weight", (_INNER, _HIDDEN)
            yield f"{at}.mlp.down_proj.weight", (_HIDDEN, _INNER)
        yield "model.norm.weight", (_HIDDEN,)
        yield "lm_head.weight", (_VOCAB, _HIDDEN)

    def config(self) -> dict[str, object]:
        """Its `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "hidden_size": _HIDDEN,
            "intermediate_size": _INNER,
            "num_hidden_layers": self.layers,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _GROUPS,
            "head_dim": _HEAD,
            "vocab_size": _VOCAB,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        }


def write_hf(folder: Path, model: Model, file_nbytes: int = 10**9) -> None:
    """A folder of transformers: bf16, in files of about this size."""
    folder.mkdir(parents=True)
    files: list[list[tuple[str, Shape]]] = [[]]
    room = file_nbytes
    for name, shape in model.tensors():
        nbytes = 2 * prod(shape)
        if nbytes > room and files[-1]:
            files.append([])
            room = file_nbytes
        files[-1].append((name, shape))
        room -= nbytes
    places = {}
    for number, tensors in enumerate(files, start=1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        header, at = {}, 0
        for name, shape in tensors:
            end = at + 2 * prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            places[name] = file
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            _fill(out, 2, at // 2)
    index = {"metadata": {"total_size": 2 * model.numel}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(model.config()), encoding="utf-8")


def write_shards(folder: Path, model: Model, ranks: int = 4) -> None:
    """What torch's distributed writer for Hugging Face leaves: a file of each rank, bf16."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config()), encoding="utf-8")
    for rank in range(ranks):
        header: dict[str, object] = {}
        boxes, at = {}, 0
        for name, shape in model.tensors():
            rows = shape[0] // ranks
            end = at + 2 * prod(shape) // ranks
            boxes[name] = {"saved_offsets": [rank * rows, *(0 for _ in shape[1:])]}
            header[name] = {
                "dtype": "BF16",
                "shape": [rows, *shape[1:]],
                "data_offsets": [at, end],
            }
            at = end
        header["__metadata__"] = {"DCP_SHARDING_INFO": json.dumps(boxes), "DCP_VERSION": "1.0"}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file = f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            _fill(out, 2, at // 2)


def write_deepspeed(folder: Path, model: Model, ranks: int = 4) -> None:
    """A run of DeepSpeed at ZeRO stage 1 with bf16 weights, whose parameters are one group."""
    step = folder / "global_step10"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step10", encoding="ascii")
    (folder / "config.json").write_text(json.dumps(model.config()), encoding="utf-8")
    shapes = OrderedDict((name, _Size(shape)) for name, shape in model.tensors())
    module, at = OrderedDict(), 0
    for name, shape in model.tensors():
        module[name] = _Tensor("BFloat16", shape, at=at)
        at += prod(shape)
    zero = {"stage": 1}
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}}
    _save(
        step / "mp_rank_00_model_states.pt",
        {
            "module": module,
            "buffer_names": [],
            "optimizer": None,
            "param_shapes": [shapes],
            "frozen_param_shapes": None,
            "frozen_param_fragments": None,
            "shared_params": {},
            "universal_checkpoint_info": {},
            "lr_scheduler": None,
            "data_sampler": None,
            "random_ltd": None,
            "sparse_tensor_module_names": [],
            "skipped_steps": 0,
            "global_steps": 10,
            "global_samples": 40,
            "dp_world_size": ranks,
            "mp_world_size": 1,
            "ds_config": {**config, "zero_optimization": zero},
            "ds_version": "0.19.8",
        },
    )
    unit = 2 * ranks
    numel = -(-model.numel // unit) * unit
    padding = numel - model.numel
    for rank in range(ranks):
        part = (numel // ranks,)
        pad = padding if rank == ranks - 1 else 0
        settings = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
        optimizer = {
            "loss_scaler": None,
            "dynamic_loss_scale": False,
            "overflow": False,
            "clip_grad": 1.0,
            "base_optimizer_state": {
                "state": {
                    0: {
                        "step": _Tensor("Float", (), b"\0\0\x20\x41"),
                        "exp_avg": _Tensor("Float", part),
                        "exp_avg_sq": _Tensor("Float", part),
                    }
                },
                "param_groups": [{**settings, "params": [0]}],
            },
            "single_partition_of_fp32_groups": [_Tensor("Float", part, at=rank * part[0])],
            "zero_stage": 1,
            "group_paddings": [pad],
            "partition_count": [ranks],
            "param_slice_mappings": [_slices(model, rank * part[0], part[0])],
            "ds_version": "0.19.8",
        }
        file = step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        _save(
            file,
            {
                "optimizer_state_dict": optimizer,
                "ds_config": {**config, "zero_optimization": zero},
                "ds_version": "0.19.8",
            },
        )


def _slices(model: Model, start: int, numel: int) -> OrderedDict[str, object]:
    """Where the parameters that a rank holds some of lie in its buffer, as DeepSpeed says it."""
    address = _stub("deepspeed.utils.tensor_fragment", "fragment_address")
    out: OrderedDict[str, object] = OrderedDict()
    at = 0
    for name, shape in model.tensors():
        low, high = max(at, start), min(at + prod(shape), start + numel)
        if low < high:
            out[name] = place = address()
            place.numel, place.start = high - low, low - start
        at += prod(shape)
    return out


def write_megatron(folder: Path, model: Model, tp: int = 2) -> None:
    """The weights of a Megatron run, cut over tensor-parallel ranks."""
    (folder / "iter_0000010").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("10", encoding="ascii")
    arguments = {
        "num_layers": model.layers,
        "hidden_size": _HIDDEN,
        "ffn_hidden_size": _INNER,
        "num_attention_heads": _HEADS,
        "num_query_groups": _GROUPS,
        "group_query_attention": True,
        "kv_channels": _HEAD,
        "vocab_size": _VOCAB,
        "padded_vocab_size": _VOCAB,
        "make_vocab_size_divisible_by": 128,
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-05,
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "swiglu": True,
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "untie_embeddings_and_output_weights": True,
        "position_embedding_type": "rope",
        "apply_layernorm_1p": False,
        "transformer_impl": "transformer_engine",
        "params_dtype": "bfloat16",
        "bf16": True,
        "fp16": False,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": 1,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "num_experts": None,
        "use_distributed_optimizer": False,
        "iteration": 10,
    }
    for rank in range(tp):
        tensors: OrderedDict[str, _Tensor] = OrderedDict()

        def add(name: str, *shape: int, tensors: OrderedDict[str, _Tensor] = tensors) -> None:
            # Every rank has the same norms.
            data = bytes(2 * _HIDDEN) if len(shape) == 1 else None
            tensors[name] = _Tensor("BFloat16", shape, data)

        add("embedding.word_embeddings.weight", _VOCAB // tp, _HIDDEN)
        for layer in range(model.layers):
            at = f"decoder.layers.{layer}"
            fused = (_HEADS + 2 * _GROUPS) * _HEAD // tp
            add(f"{at}.self_attention.linear_proj.weight", _HIDDEN, _HIDDEN // tp)
            add(f"{at}.self_attention.linear_qkv.layer_norm_weight", _HIDDEN)
            add(f"{at}.self_attention.linear_qkv.weight", fused, _HIDDEN)
            add(f"{at}.mlp.linear_fc1.layer_norm_weight", _HIDDEN)
            add(f"{at}.mlp.linear_fc1.weight", 2 * _INNER // tp, _HIDDEN)
            add(f"{at}.mlp.linear_fc2.weight", _HIDDEN, _INNER // tp)
        add("decoder.final_layernorm.weight", _HIDDEN)
        add("output_layer.weight", _VOCAB // tp, _HIDDEN)
        file = folder / "iter_0000010" / f"mp_rank_{rank:02}" / "model_optim_rng.pt"
        file.parent.mkdir()
        args = _Arguments(**arguments, rank=rank)
        _save(
            file,
            {"args": args, "checkpoint_version": 3.0, "iteration": 10, "model": tensors},
        )


SOURCES = {
    "hf": write_hf,
    "deepspeed": write_deepspeed,
    "megatron": write_megatron,
    "shards": write_shards,
}
"""How each source is written."""
NBYTES = {"hf": 2, "deepspeed": 14, "megatron": 2, "shards": 2, "dcp": 12}
"""Bytes that each source has for a parameter."""


def _fill(out: Any, itemsize: int, numel: int, start: int = 0) -> None:
    """The numbers from one place of the endless row on; the same ones in both types."""
    block = memoryview(_BLOCKS[itemsize])
    while numel:
        at = start % _PERIOD
        count = min(numel, _PERIOD - at)
        out.write(block[at * itemsize : (at + count) * itemsize])
        numel -= count
        start += count


class _Size(tuple):  # type: ignore[type-arg]
    """A shape, as torch pickles it."""


class _Arguments:
    """The arguments of Megatron, as argparse has them."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


class _Tensor:
    """A tensor of the numbers that begin at a place, or of these bytes."""

    def __init__(self, dtype: str, shape: Shape, data: bytes | None = None, at: int = 0) -> None:
        self.dtype, self.shape, self.data, self.at = dtype, shape, data, at


_ITEMSIZE = {"BFloat16": 2, "Float": 4}


def _save(path: Path, tree: object) -> None:
    """A file as `torch.save` writes it; each tensor has a storage of its own."""
    storages: list[_Tensor] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: object) -> object:
            if isinstance(item, _Storage):
                return ("storage", item.kind, item.key, "cpu", item.numel)
            return None

        def reducer_override(self, item: object) -> object:
            if isinstance(item, _Tensor):
                storages.append(item)
                numel = prod(item.shape)
                key = str(len(storages) - 1)
                storage = _Storage(_stub("torch", f"{item.dtype}Storage"), key, numel)
                stride = tuple(prod(item.shape[d + 1 :]) for d in range(len(item.shape)))
                arguments = (storage, 0, item.shape, stride, False, OrderedDict())
                return _stub("torch._utils", "_rebuild_tensor_v2"), arguments
            if isinstance(item, _Size):
                return _stub("torch", "Size"), (tuple(item),)
            if isinstance(item, _Arguments):
                return argparse.Namespace, (), item.__dict__
            return NotImplemented

    data = io.BytesIO()
    Pickler(data, 2).dump(tree)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data.getvalue())
        archive.writestr("archive/byteorder", "little")
        for number, item in enumerate(storages):
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as out:
                if item.data is None:
                    _fill(out, _ITEMSIZE[item.dtype], prod(item.shape), item.at)
                else:
                    out.write(item.data)
        archive.writestr("archive/version", "3\n")


class _Storage:
    """What a tensor is a view of."""

    def __init__(self, kind: object, key: str, numel: int) -> None:
        self.kind, self.key, self.numel = kind, key, numel


def _stub(module: str, name: str) -> Any:
    """A class that files refer to by its name, where the framework that has it is not installed."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    home = sys.modules[module]
    if not hasattr(home, name):
        setattr(home, name, type(name, (), {"__module__": module}))
    return getattr(home, name)
