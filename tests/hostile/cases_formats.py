"""Folders of DeepSpeed, Megatron, and PyTorch whose trackers, metadata, and sizes lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cases_pickle import RUN, model, sound, write
from corpus import CONVERT, Corpus
from forge_pickle import (
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    NONE,
    entries,
    items,
    listed,
    name,
    number,
    program,
    shape,
    table,
    tensor,
    text,
)
from forge_zip import torch_file

CORPUS = Corpus("formats")
STEP = "global_step1"


def placed(case: str, change: Callable[[Path], object], *words: str) -> None:
    """One case: a sound DeepSpeed folder in which something is done."""

    def build(folder: Path) -> None:
        write(folder, model())
        change(folder / "src")

    CORPUS.add(case, build, *(words or CONVERT))


def tracker(said: bytes) -> Callable[[Path], object]:
    """What `latest` says."""
    return lambda root: (root / "latest").write_bytes(said)


MODEL = f"{STEP}/mp_rank_00_model_states.pt"
placed("latest_leads_out", tracker(b"../../etc"))
placed("latest_is_absolute", tracker(b"/etc"))
placed("latest_is_empty", tracker(b""))
placed("latest_is_long", tracker(b"x" * 3_000))
placed("latest_is_a_gigabyte", tracker(b"x" * 100_000))
placed("latest_has_null_bytes", tracker(b"global_step1\0"))
placed("latest_has_escape_sequences", tracker(b"\x1b[2J"))
placed("latest_is_a_pipe", lambda root: os.mkfifo(root / "latest"))
placed("latest_is_a_device", lambda root: (root / "latest").symlink_to("/dev/zero"))
placed("latest_is_a_folder", lambda root: (root / "latest").mkdir())
placed("latest_is_a_circle", lambda root: (root / "latest").symlink_to("latest"))
placed("step_leads_out", lambda root: None, *CONVERT, "--step", "../../etc")
placed("step_with_null_bytes", lambda root: None, *CONVERT, "--step", "a\0b")
placed("step_is_long", lambda root: None, *CONVERT, "--step", "9" * 5_000)
placed("step_of_other_digits", lambda root: None, *CONVERT, "--step", "\u0661")


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in place of the model file."""

    def change(root: Path) -> None:
        (root / MODEL).unlink()
        make(root / MODEL)

    return change


def linked_target(root: Path) -> None:
    """What is written would come to lie elsewhere."""
    (root.parent / "elsewhere").mkdir()
    (root.parent / "dst").symlink_to("elsewhere")


placed("model_is_a_pipe", instead(os.mkfifo))
placed("model_is_a_folder", instead(Path.mkdir))
placed("model_is_a_device", instead(lambda path: path.symlink_to("/dev/zero")))
placed("model_is_a_circle", instead(lambda path: path.symlink_to(path.name)))
placed("model_is_not_there", instead(lambda path: path.symlink_to("nothing")))
placed("target_in_the_source", lambda root: None, "convert", "src", "src/dst", "--to", "universal")
placed("target_is_a_link", linked_target)


def deepspeed(case: str, **lies: bytes) -> None:
    """One case: a model file that says otherwise."""
    pickle = program(table(**{**sound(), **lies}))
    CORPUS.add(case, lambda folder: write(folder, pickle), *CONVERT)


HUGE = number(1 << 62)
deepspeed("world_of_2_to_the_62", dp_world_size=HUGE)
deepspeed("world_of_2_to_the_62_models", mp_world_size=HUGE)
deepspeed("world_negative", dp_world_size=number(-1))
deepspeed("world_of_nothing", mp_world_size=number(0))
deepspeed("world_of_text", mp_world_size=text("1"))
deepspeed(
    "pipeline_of_2_to_the_62",
    checkpoint_parallel_dimensions=table(pp_degree=HUGE, tp_degree=HUGE),
)
deepspeed("shapes_of_2_to_the_63", param_shapes=listed(entries({"w": shape(1 << 63)})))
deepspeed("shapes_negative", param_shapes=listed(entries({"w": shape(-4)})))
deepspeed("shapes_of_text", param_shapes=listed(entries({"w": text("4")})))
deepspeed("shapes_of_calls", param_shapes=listed(entries({"w": RUN})))
deepspeed("steps_of_text", global_steps=text("1"))
deepspeed("steps_negative", global_steps=number(-1))
deepspeed("version_of_a_list", ds_version=EMPTY_LIST)
deepspeed("version_with_escape_sequences", ds_version=text("\x1b[2J\n0.1"))
deepspeed("shared_in_a_circle", shared_params=entries({"w": text("v"), "v": text("w")}))
deepspeed("experts_of_2_to_the_62", num_experts=listed(HUGE))
deepspeed("information_of_calls", universal_checkpoint_info=RUN)
deepspeed(
    "information_of_lists",
    universal_checkpoint_info=table(universal_checkpoint_version=EMPTY_LIST, a=EMPTY_DICT),
)

# ---- names that become names of files ------------------------------------------------------------

NAMES = {
    "leads_out": "../../../outside",
    "absolute": "/tmp/outside",
    "dots": "..",
    "slash": "a/b",
    "null_byte": "w\0",
    "line_end": "w\nx",
    "long": "w" * 300,
    "long_path": "/".join(["w" * 200] * 30),
    "escape_sequences": "\x1b[2J",
    "half_of_a_pair": "w\ud800",
    "optimizer": "optimizer_state.pt",
}


def written(case: str, *names: str) -> None:
    """One case: a model with these names, written such that each becomes a folder."""
    pickle = model(module=entries({each: tensor() for each in names}))
    words = ("convert", "src", "dst", "--to", "deepspeed-universal")
    CORPUS.add(case, lambda folder: write(folder, pickle), *words)


for label, own in NAMES.items():
    written(f"folder_of_{label}", own)
written("folders_of_two_cases", "w.A", "w.a")

# ---- Megatron ------------------------------------------------------------------------------------


def megatron(case: str, said: bytes | None, **lies: bytes) -> None:
    """One case: a legacy folder of one rank.

    Args:  said: by the tracker file.  lies: arguments of the run.
    """
    arguments = {
        "num_layers": number(1),
        "hidden_size": number(4),
        "num_attention_heads": number(1),
        "tensor_model_parallel_size": number(1),
        "pipeline_model_parallel_size": number(1),
        **lies,
    }
    space = name("argparse", "Namespace") + EMPTY_TUPLE + b"\x81" + entries(arguments) + BUILD
    own = entries({"decoder.final_layernorm.weight": tensor()})
    pickle = program(
        table(args=space, model=own, iteration=number(1), checkpoint_version=number(3))
    )

    def build(folder: Path) -> None:
        rank = folder / "src" / "iter_0000001" / "mp_rank_00"
        rank.mkdir(parents=True)
        (rank / "model_optim_rng.pt").write_bytes(torch_file(pickle))
        if said is not None:
            (folder / "src" / "latest_checkpointed_iteration.txt").write_bytes(said)

    CORPUS.add(case, build, *CONVERT)


megatron("iteration_sound", b"1")
megatron("iteration_leads_out", b"../../etc")
megatron("iteration_is_long", b"9" * 4_000)
megatron("iteration_is_longer", b"9" * 5_000)
megatron("iteration_of_other_digits", "\u0661".encode())
megatron("iteration_negative", b"-1")
megatron("iteration_with_null_bytes", b"1\0")
megatron("iteration_with_escape_sequences", b"\x1b[2J")
megatron("tensor_parallel_of_2_to_the_62", b"1", tensor_model_parallel_size=HUGE)
megatron("tensor_parallel_of_nothing", b"1", tensor_model_parallel_size=number(0))
megatron("tensor_parallel_negative", b"1", tensor_model_parallel_size=number(-2))
megatron("pipeline_parallel_of_2_to_the_62", b"1", pipeline_model_parallel_size=HUGE)
megatron("expert_parallel_of_2_to_the_62", b"1", expert_model_parallel_size=HUGE)
megatron("heads_of_nothing", b"1", num_attention_heads=number(0))
megatron("layers_of_2_to_the_62", b"1", num_layers=HUGE)
megatron("hidden_negative", b"1", hidden_size=number(-4))
megatron("arguments_of_calls", b"1", num_layers=RUN)

# ---- PyTorch's distributed checkpoints -----------------------------------------------------------

META = "torch.distributed.checkpoint.metadata"
FILES = "torch.distributed.checkpoint.filesystem"


def record(module: str, kind: str, **attributes: bytes) -> bytes:
    """An object of a class with attributes."""
    return name(module, kind) + EMPTY_TUPLE + b"\x81" + table(**attributes) + BUILD


def metadata(case: str, pickle: bytes) -> None:
    """One case: a folder of one file of data whose `.metadata` is this."""

    def build(folder: Path) -> None:
        (folder / "src").mkdir()
        (folder / "src" / ".metadata").write_bytes(pickle)
        (folder / "src" / "__0_0.distcp").write_bytes(BLOB)
        (folder / "outside").write_bytes(BLOB)

    CORPUS.add(case, build, *CONVERT)


BLOB = torch_file(program(tensor()))
PROPERTIES = record(META, "TensorProperties", dtype=name("torch", "float32"))


def chunk(offsets: bytes, sizes: bytes) -> bytes:
    """Where a chunk lies in its tensor."""
    return record(META, "ChunkStorageMetadata", offsets=offsets, sizes=sizes)


def root(
    size: bytes | None = None,
    chunks: bytes | None = None,
    path: str = "__0_0.distcp",
    offset: int = 0,
    length: int = len(BLOB),
    places: int = 1,
    **more: bytes,
) -> bytes:
    """The pickle of a `.metadata` of one tensor of four elements."""
    whole = listed(chunk(shape(0), shape(4))) if chunks is None else chunks
    stored = record(
        META,
        "TensorStorageMetadata",
        properties=PROPERTIES,
        size=shape(4) if size is None else size,
        chunks=whole,
    )
    index = record(META, "MetadataIndex", fqn=text("w"), offset=shape(0), index=NONE)
    place = record(
        FILES,
        "_StorageInfo",
        relative_path=text(path),
        offset=number(offset),
        length=number(length),
    )
    storage = EMPTY_DICT + b"(" + (index + place) * places + b"u"
    return program(
        record(
            META,
            "Metadata",
            **{
                "state_dict_metadata": entries({"w": stored}),
                "storage_data": storage,
                "planner_data": NONE,
                **more,
            },
        )
    )


metadata("chunks_sound", root())
metadata("chunk_outside", root(chunks=listed(chunk(shape(0), shape(5)))))
metadata("chunk_negative", root(chunks=listed(chunk(shape(-1), shape(4)))))
metadata("chunk_of_2_to_the_63", root(chunks=listed(chunk(shape(0), shape(1 << 63)))))
metadata(
    "chunks_overlap", root(chunks=listed(chunk(shape(0), shape(4)), chunk(shape(0), shape(4))))
)
metadata("chunk_of_two_dimensions", root(chunks=listed(chunk(shape(0, 0), shape(2, 2)))))
metadata("chunk_missing", root(chunks=EMPTY_LIST))
metadata("chunk_is_a_number", root(chunks=listed(number(1))))
metadata("chunk_stored_twice", root(places=2))
metadata("size_of_2_to_the_62", root(size=shape(1 << 62)))
metadata("size_of_2_to_the_63", root(size=shape(1 << 63)))
metadata("size_negative", root(size=shape(-4)))
metadata("size_of_many_dimensions", root(size=items(*[number(1)] * 5_000)))
metadata("path_leads_out", root(path="../outside"))
metadata("path_is_absolute", root(path="/etc/passwd"))
metadata("path_has_null_bytes", root(path="a\0"))
metadata("path_is_long", root(path="a" * 5_000))
metadata("path_is_the_folder", root(path="."))
metadata("path_is_empty", root(path=""))
metadata("path_is_not_there", root(path="__1_0.distcp"))
metadata("place_negative", root(offset=-1))
metadata("place_past_the_end", root(offset=1 << 40))
metadata("place_of_2_to_the_64", root(offset=1 << 64))
metadata("length_negative", root(length=-1))
metadata("length_past_the_end", root(length=1 << 40))
metadata("planner_of_numbers", root(planner_data=entries({"w": number(1)})))
metadata("planner_of_text", root(planner_data=entries({"w": text("ab")})))
metadata("planner_of_calls", root(planner_data=entries({"w": items(RUN)})))
metadata("root_is_a_call", program(RUN))
metadata("root_is_a_list", program(EMPTY_LIST))
metadata("root_of_another_class", program(record("os", "Metadata")))
metadata("nothing_stored", program(record(META, "Metadata")))
metadata("no_pickle", b"#!/bin/sh\n")
metadata("empty_metadata", b"")
