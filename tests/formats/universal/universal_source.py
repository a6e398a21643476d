"""Small sources that a test writes itself, and a conversion by loops instead of the engine."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from reshard.dtypes import DType
from reshard.formats.universal.write import prepare
from reshard.language import load_layout
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.build import build_plan
from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor, SourceFile
from reshard.plan.output import Output, Written
from reshard.plan.plan import Array
from reshard.plan.prove import prove_sources
from reshard.plan.target import Target
from reshard.run.run import Group, Run
from reshard.store.digest import digest_bytes

DTYPES = {"float32": DType.F32, "uint16": DType.BF16, "int64": DType.I64, "uint8": DType.U8}
"""numpy types by which a test writes elements; bfloat16 as its bits."""

TRAINING = Run(
    iteration=7,
    param_groups=(Group({"lr": 0.1, "betas": [0.9, 0.95]}, ["a.weight", "b.weight"]),),
    state={"lr_scheduler": {"last_epoch": 7}, "loss_scaler": None},
    framework={"name": "test", "version": "1.2", "client_state": {"note": "übrig", "big": 2**70}},
)


def local(
    name: str, state: str, coord: Mapping[str, int], data: Any, pieces: int = 2
) -> tuple[str, str, Coord, Any, int]:
    """A local tensor, stored in so many fragments."""
    return name, state, tuple(coord.items()), data, pieces


def make_catalog(
    root: Path,
    layout: str,
    mesh: Mapping[str, int],
    tensors: Sequence[tuple[str, str, Coord, Any, int]],
    **facts: Any,
) -> Catalog:
    """A catalog of tensors that are written, in fragments, into one file a coordinate."""
    root.mkdir(parents=True, exist_ok=True)
    buffers: dict[str, bytearray] = {}
    listed = []
    for name, state, coord, data, pieces in tensors:
        array = np.ascontiguousarray(data)
        file = "-".join(["rank", *(f"{a}{i}" for a, i in coord)]) + ".bin"
        buffer = buffers.setdefault(file, bytearray(b"head"))
        flat = array.reshape(-1)
        cuts = [array.size * k // pieces for k in range(pieces + 1)]
        fragments = []
        for start, stop in itertools.pairwise(cuts):
            buffer += b"\xee" * 3
            fragments.append(Fragment(start, stop - start, file, len(buffer)))
            buffer += flat[start:stop].tobytes()
        dtype = DTYPES[array.dtype.name]
        shape = np.shape(data)
        listed.append(LocalTensor(name, state, coord, shape, dtype, tuple(fragments)))
    files = []
    for file, buffer in buffers.items():
        (root / file).write_bytes(buffer)
        files.append(SourceFile(file, len(buffer), (root / file).stat().st_mtime_ns))
    facts.setdefault("training", TRAINING)
    return Catalog(
        "test",
        "1.2",
        str(root),
        mesh,
        tuple(listed),
        load_layout(layout, "layout.ucl"),
        files=tuple(files),
        **facts,
    )


def arrange(catalog: Catalog) -> Arrangement:
    """A catalog through its own layout, proved."""
    arrangement = bind(catalog.layout, catalog)
    prove_sources(arrangement)
    return arrangement


def convert(arrangement: Arrangement, folder: Path, **settings: Any) -> Output:
    """Write a universal checkpoint of an arrangement."""
    output = prepare(arrangement, Target("universal", {}), **settings)
    plan = build_plan(arrangement, output.placed)
    root = Path(plan.root)
    images = {path: bytearray(nbytes) for path, nbytes in output.files.items()}
    for item in output.head:
        image = images.setdefault(item.file, bytearray(len(item.data)))
        image[item.byte_offset : item.byte_offset + len(item.data)] = item.data
    written = []
    for placed in plan.placed:
        data = made(placed.array, root)
        images[placed.file][placed.byte_offset : placed.byte_offset + len(data)] = data
        written.append(Written(placed, digest_bytes(data), None))
    for item in output.finish(written):
        assert item.file not in images
        images[item.file] = bytearray(item.data)
    for path, image in images.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(image)
    return output


def made(array: Array, root: Path) -> bytes:
    """The bytes of an array, copied element by element."""
    size = array.spec.dtype.itemsize
    out = bytearray(array.spec.nbytes)
    for copy in array.copies:
        for origin in copy.origins:
            data = origin.literal
            if data is None:
                data = (root / origin.file).read_bytes()[origin.byte_offset :]
            move = origin.move
            for index in itertools.product(*(range(n) for n in move.shape)):
                src = move.src_offset + sum(
                    i * s for i, s in zip(index, move.src_strides, strict=True)
                )
                dst = move.dst_offset + sum(
                    i * s for i, s in zip(index, move.dst_strides, strict=True)
                )
                element = data[src * size : (src + 1) * size]
                if origin is not copy.origins[0]:
                    assert out[dst * size : (dst + 1) * size] == element
                out[dst * size : (dst + 1) * size] = element
    return bytes(out)


def read_whole(catalog: Catalog) -> dict[tuple[str, str], bytes]:
    """The bytes of every tensor of a catalog whose tensors are whole."""
    out = {}
    for tensor in catalog.tensors:
        (fragment,) = tensor.fragments
        data = (Path(catalog.root) / fragment.file).read_bytes()
        nbytes = prod(tensor.shape) * tensor.dtype.itemsize
        out[tensor.name, tensor.state] = data[fragment.byte_offset : fragment.byte_offset + nbytes]
    return out


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


TP_LAYOUT = """
layout gpt {
    mesh tp = 2, dp
    "embed.weight" = [rows over tp truncated to 5, _]
    "a.weight"     = [(gate over tp + up over tp), ...]
    "b.weight"     = [_, cols over tp]
    "norm.*"       = [...]
    "spare"        = [...] optional
}
"""


def numbers(start: int, *shape: int, dtype: str = "float32") -> Any:
    """Elements that say where they are."""
    return np.arange(start, start + prod(shape)).reshape(shape).astype(dtype)


def wholes() -> dict[tuple[str, str], Any]:
    """The tensors of the small model, whole."""
    out = {}
    for state, at in (("param", 0), ("master", 1000), ("exp_avg", 2000), ("exp_avg_sq", 3000)):
        dtype = "uint16" if state == "param" else "float32"
        out["embed.weight", state] = numbers(at, 5, 4, dtype=dtype)
        out["a.weight", state] = numbers(at + 100, 12, 4, dtype=dtype)
        out["b.weight", state] = numbers(at + 200, 4, 6, dtype=dtype)
        out["norm.weight", state] = numbers(at + 300, 4, dtype=dtype)
    for name in ("embed.weight", "a.weight", "b.weight", "norm.weight"):
        out[name, "step"] = numbers(7)
    out["norm.mask", "param"] = numbers(0, 3, dtype="uint8")
    return out


def tp_catalog(root: Path, **facts: Any) -> Catalog:
    """The small model on two tensor-parallel ranks."""
    tensors = []
    for (name, state), data in wholes().items():
        for tp_rank in range(2):
            piece = data
            if np.ndim(data):
                if name == "embed.weight":
                    padded = np.concatenate([data, np.zeros((1, 4), data.dtype)])
                    piece = np.split(padded, 2)[tp_rank]
                if name == "a.weight":
                    gate, up = np.split(data, 2)
                    piece = np.concatenate([np.split(part, 2)[tp_rank] for part in (gate, up)])
                if name == "b.weight":
                    piece = np.split(data, 2, axis=1)[tp_rank]
            tensors.append(local(name, state, {"tp": tp_rank}, piece, 2 if np.ndim(data) else 1))
    facts.setdefault("aliases", {"head.weight": "embed.weight"})
    facts.setdefault("buffers", ("norm.mask",))
    extra = local("rng", "extra", {}, numbers(40, 8, dtype="uint8"), 1)
    return make_catalog(root, TP_LAYOUT, {"tp": 2, "dp": 4}, [*tensors, extra], **facts)


def whole_catalog(root: Path, **facts: Any) -> Catalog:
    """The small model on one rank, stored in another order."""
    tensors = [local(name, state, {}, data, 1) for (name, state), data in wholes().items()]
    facts.setdefault("aliases", {"head.weight": "embed.weight"})
    facts.setdefault("buffers", ("norm.mask",))
    extra = local("rng", "extra", {}, numbers(40, 8, dtype="uint8"), 1)
    layout = 'layout plain { "**" = [...] }'
    return make_catalog(root, layout, {}, [extra, *reversed(tensors)], **facts)


def without(training: Run, **changes: Any) -> Run:
    """Training with some facts changed."""
    return replace(training, **changes)
