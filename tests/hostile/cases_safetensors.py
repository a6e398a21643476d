"""Safetensors files and indexes that lie, in folders of the Hugging Face kind."""

from __future__ import annotations

import json
import os
import struct
from math import prod
from pathlib import Path

from corpus import CONVERT, Corpus

CORPUS = Corpus("safetensors")
SOUND: dict[str, object] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
}


def image(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """A file; the header is JSON, or bytes as they are."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def stored(case: str, data: bytes) -> None:
    """One case: a model of one file."""

    def build(folder: Path) -> None:
        (folder / "src").mkdir()
        (folder / "src" / "model.safetensors").write_bytes(data)

    CORPUS.add(case, build)


def entry(**changes: object) -> dict[str, object]:
    """A header whose second tensor is another."""
    return {**SOUND, "b": {**SOUND["b"], **changes}}  # type: ignore[dict-item]


def one(text: str) -> bytes:
    """A header of this text in place of the second tensor's entry."""
    first = json.dumps(SOUND["a"])
    return f'{{"a":{first},"b":{text}}}'.encode()


stored("sound", image(SOUND))
stored("sound_with_metadata", image({"__metadata__": {"format": "pt"}, **SOUND}))

# ---- the header ----------------------------------------------------------------------------------

stored("empty", b"")
stored("seven_bytes", bytes(7))
stored("header_past_the_end", image(SOUND, length=10_000))
stored("header_of_2_to_the_63", image(SOUND, length=1 << 63))
stored("header_of_a_gigabyte", image(SOUND, length=1 << 30))
stored("header_of_nothing", image(b""))
stored("header_of_spaces", image(b" " * 20_000_000))
stored("header_of_brackets", image(b"[" * 20_000_000))
stored("header_of_empty_lists", image(b"[" + b"[]," * 10_000_000 + b"[]]"))
stored("header_of_empty_objects", image(b'{"a":[' + b"{}," * 10_000_000 + b"{}]}"))
stored("header_of_numbers", image(b'{"a":[' + b"999," * 5_000_000 + b"999]}"))
stored("header_is_no_text", image(b"\xff\xfe{}"))
stored("header_is_a_list", image([]))
stored("header_is_a_number", image(b"1"))
stored("nested_too_deep", image(one("[" * 5_000 + "]" * 5_000)))
stored("not_a_number", image(one('{"dtype":"BF16","shape":[NaN],"data_offsets":[8,16]}')))
stored("infinity", image(one('{"dtype":"BF16","shape":[Infinity],"data_offsets":[8,16]}')))
stored("number_beyond_all", image(one('{"dtype":"BF16","shape":[1e999],"data_offsets":[8,16]}')))
stored("number_of_many_digits", image(one('{"shape":[' + "9" * 10_000 + "]}")))
stored("trailing_text", image(json.dumps(SOUND).encode() + b"{}"))
stored("name_twice", image(one(json.dumps(SOUND["b"]) + ',"a":' + json.dumps(SOUND["a"]))))
stored("key_twice", image(one('{"dtype":"F32","dtype":"BF16","shape":[4],"data_offsets":[8,16]}')))
stored("metadata_of_numbers", image({"__metadata__": {"format": 1}, **SOUND}))
stored("metadata_is_a_list", image({"__metadata__": [], **SOUND}))

# ---- tensors -------------------------------------------------------------------------------------

stored("dtype_unknown", image(entry(dtype="F7")))
stored("dtype_is_a_list", image(entry(dtype=["F32"])))
stored("dtype_is_missing", image({**SOUND, "b": {"shape": [4], "data_offsets": [8, 16]}}))
stored("shape_negative", image(entry(shape=[-2, -2])))
stored("shape_of_2_to_the_63", image(entry(shape=[1 << 63])))
stored("shape_overflows", image(entry(shape=[1 << 32, 1 << 32])))
stored("shape_of_truth", image(entry(shape=[True, 4])))
stored("shape_of_fractions", image(entry(shape=[2.0, 2.0])))
stored("shape_of_many_numbers", image(entry(shape=[1] * 100_000)))
stored("shape_is_a_number", image(entry(shape=4)))
stored("offsets_negative", image(entry(data_offsets=[-8, 0])))
stored("offsets_backwards", image(entry(data_offsets=[16, 8])))
stored("offsets_past_the_end", image(entry(data_offsets=[8, 1 << 40])))
stored("offsets_of_2_to_the_63", image(entry(data_offsets=[1 << 63, (1 << 63) + 8])))
stored("three_offsets", image(entry(data_offsets=[8, 16, 24])))
stored("overlap", image(entry(data_offsets=[4, 12]), bytes(12)))
stored("hole", image(entry(data_offsets=[12, 20]), bytes(20)))
stored("trailing_bytes", image(SOUND, bytes(17)))
stored("missing_bytes", image(SOUND, bytes(15)))
stored("size_of_another_type", image(entry(dtype="F32")))
stored("entry_is_a_list", image({**SOUND, "b": []}))
stored("name_with_escape_sequences", image({"\x1b[2J": {**SOUND["b"], "dtype": 1}}))  # type: ignore[dict-item]

# ---- the index -----------------------------------------------------------------------------------


def indexed(case: str, index: object, *files: str) -> None:
    """One case: a model of several files, and their index."""

    def build(folder: Path) -> None:
        root = folder / "src"
        root.mkdir()
        raw = index if isinstance(index, bytes) else json.dumps(index).encode()
        (root / "model.safetensors.index.json").write_bytes(raw)
        for name in files or ("model-1.safetensors",):
            (root / name).write_bytes(image(SOUND))
        (folder / "outside.safetensors").write_bytes(image(SOUND))

    CORPUS.add(case, build)


HERE = {"a": "model-1.safetensors", "b": "model-1.safetensors"}
indexed("index_sound", {"metadata": {"total_size": 16}, "weight_map": HERE})
indexed("index_is_a_list", [])
indexed("index_is_empty", b"")
indexed("index_without_a_map", {"metadata": {}})
indexed("index_names_no_file", {"weight_map": {**HERE, "b": "model-2.safetensors"}})
indexed("index_leads_out", {"weight_map": {**HERE, "b": "../outside.safetensors"}})
indexed("index_is_absolute", {"weight_map": {**HERE, "b": "/etc/passwd"}})
indexed("index_names_a_number", {"weight_map": {**HERE, "b": 7}})
indexed("index_names_a_null_byte", {"weight_map": {**HERE, "b": "model-1\0.safetensors"}})
indexed("index_names_a_long_file", {"weight_map": {**HERE, "b": "x" * 5_000}})
indexed("index_names_the_folder", {"weight_map": {**HERE, "b": "."}})
indexed("index_lacks_a_tensor", {"weight_map": {"a": "model-1.safetensors"}})
indexed("index_has_more_tensors", {"weight_map": {**HERE, "c": "model-1.safetensors"}})
indexed("index_nested_too_deep", b'{"weight_map":' + b"[" * 50_000)
indexed("index_with_a_name_twice", b'{"weight_map":{"a":"x","a":"y"}}')
indexed("index_with_infinity", b'{"metadata":{"total_size":Infinity},"weight_map":{}}')
indexed("file_beside_the_index", {"weight_map": HERE}, "model-1.safetensors", "model-2.safetensors")


@CORPUS.case()
def link_out(folder: Path) -> None:
    """A file that is a link to one outside."""
    (folder / "src").mkdir()
    (folder / "outside.safetensors").write_bytes(image(SOUND))
    (folder / "src" / "model.safetensors").symlink_to("../outside.safetensors")


@CORPUS.case()
def link_in_the_cache_of_the_hub(folder: Path) -> None:
    """Links as `huggingface_hub` makes them: these are followed."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_bytes(image(SOUND))
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    (folder / "src").symlink_to("snapshots/1")


@CORPUS.case()
def link_to_itself(folder: Path) -> None:
    """A link that leads to itself."""
    (folder / "src").mkdir()
    (folder / "src" / "model.safetensors").symlink_to("model.safetensors")


@CORPUS.case()
def pipe_as_a_file(folder: Path) -> None:
    """A pipe in place of the file; reading it would wait for ever."""
    (folder / "src").mkdir()
    os.mkfifo(folder / "src" / "model.safetensors")


@CORPUS.case()
def pipe_as_the_index(folder: Path) -> None:
    """A pipe in place of the index."""
    (folder / "src").mkdir()
    os.mkfifo(folder / "src" / "model.safetensors.index.json")


@CORPUS.case()
def folder_as_a_file(folder: Path) -> None:
    """A folder in place of the file."""
    (folder / "src" / "model.safetensors").mkdir(parents=True)


@CORPUS.case()
def device_as_a_file(folder: Path) -> None:
    """A link to a device that never ends."""
    (folder / "src").mkdir()
    (folder / "src" / "model.safetensors").symlink_to("/dev/zero")


SHAPES = {
    "layers.0.norm.weight": [4],
    "layers.0.q_proj.weight": [4, 4],
    "norm.weight": [4],
}
OWN = """\
model tiny {
    axis layer = num_hidden_layers
    axis kv = num_key_value_heads
    axis q = num_attention_heads / num_key_value_heads
    axis d
    axis h = hidden_size
    tensor wq [layer, kv, q, d, h]
    tensor norm1 [layer, h]
    tensor norm [h]
}
layout tiny of tiny {
    "layers.{layer}.q_proj.weight" = wq[kv q d, h]
    "layers.{layer}.norm.weight" = norm1[h]
    "norm.weight" = norm[h]
}
"""


def configured(case: str, config: object) -> None:
    """One case: a model whose `config.json` says this, read through a layout of its sizes."""

    def build(folder: Path) -> None:
        root = folder / "src"
        root.mkdir()
        raw = config if isinstance(config, bytes) else json.dumps(config).encode()
        (root / "config.json").write_bytes(raw)
        head, end = {}, 0
        for name, shape in SHAPES.items():
            start, end = end, end + 4 * prod(shape)
            head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        (root / "model.safetensors").write_bytes(image(head, bytes(end)))

        (folder / "own.ucl").write_text(OWN, encoding="utf-8")

    CORPUS.add(case, build, *CONVERT, "--layout", "own.ucl#tiny")


LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "vocab_size": 8,
}
configured("config_sound", LLAMA)
configured("config_negative", {**LLAMA, "hidden_size": -4})
configured("config_of_2_to_the_63", {**LLAMA, "hidden_size": 1 << 63})
configured("config_of_many_layers", {**LLAMA, "num_hidden_layers": 1 << 62})
configured("config_of_a_billion_layers", {**LLAMA, "num_hidden_layers": 10**9})
configured("config_divides_by_zero", {**LLAMA, "num_key_value_heads": 0})
configured("config_of_nothing", {**LLAMA, "hidden_size": None})
configured("config_of_text", {**LLAMA, "hidden_size": "4"})
configured("config_of_fractions", {**LLAMA, "hidden_size": 4.5})
configured("config_not_a_number", b'{"model_type":"llama","hidden_size":NaN}')
configured("config_of_a_list", [])
configured("config_nested_too_deep", b'{"model_type":' + b"[" * 50_000)
configured("config_of_another_name", {**LLAMA, "model_type": "\x1b[2J"})
configured("config_is_no_text", b"\xff\xfe")
