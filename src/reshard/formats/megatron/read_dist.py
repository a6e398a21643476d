"""Reads distributed checkpoints: `torch_dist`, the `zarr` backend, which was before it, and what
FSDP saves as a plain distributed checkpoint.

What all ranks have in common, `common.pt`, is one of the pickled objects since core 0.17.
Source: megatron/core/dist_checkpointing/{serialization,strategies/common,strategies/torch,
strategies/resharding}.py (core 0.5 to 0.20); megatron/core/distributed/fsdp/mcore_fsdp_adapter.py
(core 0.14 to 0.20).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from reshard.algebra.box import Box
from reshard.algebra.flat import flat_to_boxes
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.catalog import Contents
from reshard.formats.megatron.flat_dist import COPY, flat_tensors
from reshard.formats.megatron.groups import Groups, dist_groups, unread_states
from reshard.formats.megatron.masters import check_masters, join_masters
from reshard.formats.megatron.modules import is_vocabulary
from reshard.formats.megatron.names import (
    FSDP_GROUP,
    FlatKey,
    StateKey,
    fsdp_key_of,
    key_of,
    rule_lines,
    unwrapped,
)
from reshard.models.run_arguments import Arguments, arguments_in, arguments_of
from reshard.plan.catalog import Catalog, Fragment, Left, LocalTensor
from reshard.run.states import EXTRA, PARAM
from reshard.storage.bounded_json import load_bounded
from reshard.storage.dcp_chunks import ChunkReader, check_volume
from reshard.storage.dcp_metadata import (
    Chunk,
    Metadata,
    StoredTensor,
    read_metadata,
    refuse_torch_dist,
)
from reshard.storage.kept import encode
from reshard.storage.torch_file import TensorRef, open_torch_file, read_small
from reshard.storage.zarr_array import HEADER, ZarrArray, bad_zarr
from reshard.store.source import LocalSource
from reshard.store.source_files import SourceFiles

COMMON, COMMON_FILE = "common_state/", "common.pt"
"""How the key of the common state begins, and the file that it was in before."""
METADATA = "metadata.json"
_TRAIN_STATE = "train_state.pt"
_MAX_NBYTES = 1 << 20
_WEIGHTS = (PARAM, EXTRA)
_OF_OPTIMIZER = frozenset(
    ("shifted-optimizer", "buffer-mismatch", "bad-model-space", "ambiguous-optimizer-ids")
)
"""Faults that leave the weights as they are."""

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout megatron_dist {
    "**" = [...] optional
}
"""
FSDP_LAYOUT = LAYOUT.replace("megatron_dist", "megatron_fsdp")


def read_dist(folder: Path) -> Catalog:
    """The catalog of a folder with `metadata.json`.

    Raises: ReshardError[unsupported-backend | no-arguments | bad-zarr | incomplete-megatron], and
            what `read_metadata` and `ChunkReader` raise. What is wrong with the optimizer alone is
            kept in the catalog.
    """
    source, chunks = LocalSource(folder), ChunkReader(folder)
    backend = _backend(source)
    is_zarr = backend == "zarr"
    metadata = Metadata((), (), {}, "", {}, ()) if is_zarr else read_metadata(folder)
    of_common = [item.file for item in metadata.objects if item.name.startswith(COMMON)]
    of_common += [COMMON_FILE] if source.has(COMMON_FILE) else []
    for name in (METADATA, *reversed(of_common), *([] if is_zarr else [".metadata"])):
        chunks.know(name)
    objects = {item.name: chunks.object_of(item) for item in metadata.objects}
    places = {item.name: item.file for item in metadata.objects}
    root, args, common_file, unread = _common_state(source, chunks, objects, places)
    content = _Zarr(source, chunks, args) if is_zarr else _TorchDist(chunks, metadata, args)
    objects |= content.objects
    contents = Contents(folder, backend, root, args, content.weights)

    def optimizer() -> tuple[list[LocalTensor], Groups]:
        states = content.states(objects)
        tensors = [*content.weights, *states]
        groups, steps = dist_groups(root.get("optimizer"), objects, tensors, common_file)
        return [*states, *steps], groups

    contents.read_optimizer(optimizer, _OF_OPTIMIZER)
    copies = 1 + max((index for t in contents.states for _, index in t.coord), default=0)
    return contents.catalog(
        _layout(contents, copies > 1),
        tuple(chunks.files.values()),
        mesh={COPY: copies} if copies > 1 else {},
        objects={
            name: value
            for name, value in objects.items()
            if ".param_state/" not in name and not name.startswith(COMMON)
        },
        unread=[*unread, *unread_states(root.get("optimizer"), common_file)],
    )


def read_fsdp(folder: Path) -> Catalog:
    """The catalog of a folder with `.metadata` and without `metadata.json`: `fsdp_dtensor`, and
    `torch_dcp`. Arguments and the rest are pickled objects.

    Raises: what `read_metadata`, `refuse_torch_dist`, and `ChunkReader` raise. What is wrong with
            the optimizer alone is kept in the catalog.
    """
    metadata, chunks = read_metadata(folder), ChunkReader(folder)
    refuse_torch_dist(folder, metadata)
    chunks.know(".metadata")
    objects = {item.name: chunks.object_of(item) for item in metadata.objects}
    keys = [(fsdp_key_of(entry.name), entry) for entry in metadata.tensors]
    numbered = [e.name for k, e in keys if k.state not in _WEIGHTS and k.name.isdecimal()]
    tensors = [
        LocalTensor(k.name, k.state, (), e.shape, e.dtype, chunks.fragments(e))
        for k, e in keys
        if k.state in _WEIGHTS or not k.name.isdecimal()
    ]
    chunks.refuse_overlaps()
    optimizer = {key: value for key, value in objects.items() if key.startswith("optimizer.")}
    root: dict[object, object] = {k: v for k, v in objects.items() if k not in optimizer}
    path = str(folder / ".metadata")
    args = arguments_in(objects.get("args"), path) or arguments_of({}, path, folder)
    contents = Contents(folder, "fsdp", root, args, [t for t in tensors if t.state in _WEIGHTS])
    contents.vocabulary = None

    def states() -> tuple[list[LocalTensor], Groups]:
        for key in numbered[:1]:
            why = "`torch_dcp` saves the optimizer's `state_dict()`, which numbers parameters"
            raise source_error(
                "ambiguous-optimizer-ids",
                f"`{key}` in {folder} belongs to a parameter that has a number, but no name",
                notes=[why],
                helps=["keep the weights with `--states weights`"],
            )
        groups, settings = Groups(), dict[str, dict[str, object]]()
        for key, value in optimizer.items():
            if key.startswith(FSDP_GROUP):
                name, _, setting = key.removeprefix(FSDP_GROUP).rpartition(".")
                settings.setdefault(unwrapped(name), {})[setting] = value
        for name, values in settings.items():
            groups.add(values, [name])
        return [tensor for tensor in tensors if tensor.state not in _WEIGHTS], groups

    contents.read_optimizer(states)
    kept = {key: value for key, value in optimizer.items() if not key.startswith(FSDP_GROUP)}
    return contents.catalog(FSDP_LAYOUT, tuple(chunks.files.values()), objects=kept)


def _backend(source: LocalSource) -> str:
    """What stores the tensors: `torch_dist`, or `zarr`.

    Raises: ReshardError[unsupported-backend | source-unreadable].
    """
    try:
        content = load_bounded(source.text(METADATA, _MAX_NBYTES))
        backend = content.get("sharded_backend") if isinstance(content, dict) else None
    except ValueError:
        backend = None
    if backend not in ("torch_dist", "zarr"):
        raise source_error(
            "unsupported-backend",
            f"{source.root} is stored by backend `{backend}`",
            notes=["`torch_dist` and `zarr` are read"],
            helps=["convert it with the Megatron that wrote it"],
        )
    return str(backend)


def _common_state(
    source: LocalSource,
    chunks: ChunkReader,
    objects: Mapping[str, object],
    places: Mapping[str, str],
) -> tuple[Mapping[object, object], Arguments, str, list[Left]]:
    """The common state, its arguments, the file that it is in, and what is not read of it: the
    object, which was saved with the tensors, goes before the file.

    Args:  objects: pickled ones, by key.  places: their files.
    Raises: ReshardError[incomplete-megatron | no-arguments], and what `open_torch_file` raises.
    """
    key = next((key for key in objects if key.startswith(COMMON)), None)
    root: object = None
    unread: list[Left] = []
    if source.has(COMMON_FILE):
        root = open_torch_file(source.path(COMMON_FILE)).root
    elif key is None:
        raise source_error(
            "incomplete-megatron",
            f"{source.root} lacks the common state: arguments, iteration, and param groups",
            notes=[f"neither a file `{COMMON_FILE}`, nor an object `common_state` in `.metadata`"],
            helps=["copy the whole folder"],
        )
    if key is not None:
        of_file, root = root, objects[key]
        root = root[0] if isinstance(root, list) and len(root) == 1 else root
        if COMMON_FILE in chunks.files and encode(of_file) != encode(root):
            why = "it says other things than the common state that was saved with the tensors"
            unread = [Left(COMMON_FILE, "", why)]
    file = COMMON_FILE if key is None else places[key]
    path = str(source.root / file)
    entries = root if isinstance(root, dict) else {}
    args = arguments_of(entries, path, source.root)
    step = entries.get("global_step", _step_beside(source))
    if "iteration" not in entries and isinstance(step, int):
        entries = {**entries, "iteration": step}
    return entries, args, file, unread


def _step_beside(source: LocalSource) -> int | None:
    """The iteration that the state of the training loop of Megatron-Bridge tells."""
    if not source.has(_TRAIN_STATE):
        return None
    root = open_torch_file(source.path(_TRAIN_STATE)).root
    step = root.get("step") if isinstance(root, dict) else None
    if isinstance(step, TensorRef) and step.numel == 1:
        step = int.from_bytes(read_small(step), "little", signed=True)
    return step if isinstance(step, int) else None


class _TorchDist:
    """The tensors of `torch_dist`.

    Attributes:  objects: pickled ones that `.metadata` does not list, by key.
    """

    def __init__(self, chunks: ChunkReader, metadata: Metadata, args: Arguments) -> None:
        self._chunks, self._metadata, self._args = chunks, metadata, args
        keys = [(key_of(entry.name), entry) for entry in metadata.tensors]
        self._flat = [(key, entry) for key, entry in keys if isinstance(key, FlatKey)]
        self._named = [(key, entry) for key, entry in keys if isinstance(key, StateKey)]
        self.objects: Mapping[str, object] = {}
        self.weights = [self._tensor(k, s) for k, s in self._named if k.state in _WEIGHTS]

    def states(self, objects: Mapping[str, object]) -> list[LocalTensor]:
        """The tensors of the optimizer.

        Raises: ReshardError, for what is wrong with them.
        """
        args, chunks = self._args, self._chunks
        tensors = [self._tensor(k, s) for k, s in self._named if k.state not in _WEIGHTS]
        with SourceFiles(chunks.root) as files:
            tensors = join_masters(self.weights, tensors, args, files)
            check_masters([*self.weights, *tensors], args, files)
            if self._flat or any(".param_state/" in name for name in objects):
                tensors += flat_tensors(self._flat, objects, args, chunks, self.weights, files)
        chunks.refuse_overlaps()
        return tensors

    def _tensor(self, key: StateKey, tensor: StoredTensor) -> LocalTensor:
        shape = _original_shape(self._metadata, tensor.name)
        if shape is None or shape == tensor.shape:
            fragments, shape = self._chunks.fragments(tensor), tensor.shape
        else:
            fragments = _unfolded(self._chunks, tensor, shape)
        return LocalTensor(key.name, key.state, (), shape, tensor.dtype, fragments)


class _Zarr:
    """The tensors of `zarr`, and its objects, each in a file of its own."""

    def __init__(self, source: LocalSource, chunks: ChunkReader, args: Arguments) -> None:
        self._args, self._root = args, source.root
        half = DType.BF16 if args.get("bf16") else DType.F16 if args.get("fp16") else None
        tensors = []
        for name in source.matching(f"*/{HEADER}"):
            folder = name.rpartition("/")[0]
            key = key_of(folder)
            if isinstance(key, FlatKey):
                raise bad_zarr(source, folder, "it is a flat buffer of the distributed optimizer")
            array = ZarrArray(source, folder, half)
            tensor = (key.name, key.state, (), array.shape, array.dtype, array.fragments())
            tensors.append(LocalTensor(*tensor))
            chunks.files.update({file.path: file for file in array.files})
        self.weights = [t for t in tensors if t.state in _WEIGHTS]
        self._states = [t for t in tensors if t.state not in _WEIGHTS]
        self.objects: dict[str, object] = {}
        for name in source.matching("*/shard_*.pt"):
            chunks.know(name)
            self.objects[name.removesuffix(".pt")] = open_torch_file(source.path(name)).root

    def states(self, _: Mapping[str, object]) -> list[LocalTensor]:
        """The tensors of the optimizer.

        Raises: ReshardError[bad-model-space | shifted-optimizer].
        """
        shapes = {t.name: t.shape for t in self.weights if t.state == PARAM}
        for tensor in self._states:
            if shapes.get(tensor.name, tensor.shape) != tensor.shape and tensor.shape:
                raise _no_blocks(
                    f"`{tensor.name}` ({tensor.state})",
                    tensor.shape,
                    shapes[tensor.name],
                    "states of `zarr` are read where they have their parameter's shape",
                )
        with SourceFiles(self._root) as files:
            check_masters([*self.weights, *self._states], self._args, files)
        return self._states


def _original_shape(metadata: Metadata, name: str) -> tuple[int, ...] | None:
    """The shape that a tensor has in the model, where it is stored in another."""
    table = metadata.extra.get("mcore_data")
    entry = table.get(name) if isinstance(table, dict) else None
    shape = entry.get("nd_reformulated_orig_global_shape") if isinstance(entry, dict) else None
    return tuple(shape) if isinstance(shape, (tuple, list)) else None


def _unfolded(
    chunks: ChunkReader, tensor: StoredTensor, shape: tuple[int, ...]
) -> tuple[Fragment, ...]:
    """The fragments of a tensor of `fully_sharded_model_space`, whose blocks are stored flat.

    One of shape (X, Y) that is cut into blocks of (x, y) is stored as (X/x, Y/y, x*y): the grid of
    blocks, and each block row-major, cut along it anywhere.

    Raises: ReshardError[bad-model-space], and what `ChunkReader` raises.
    """
    check_volume(tensor)
    grid = tensor.shape[:-1]
    if len(grid) != len(shape) or any(not g or s % g for s, g in zip(shape, grid, strict=True)):
        why = "the leading dimensions must be the grid of blocks, the last one a block"
        raise _no_blocks(f"`{tensor.name}`", tensor.shape, shape, why)
    block = tuple(s // g for s, g in zip(shape, grid, strict=True))
    return tuple(f for c in tensor.chunks for f in _boxes(chunks.open(tensor, c), c, block))


def _boxes(ref: TensorRef, chunk: Chunk, block: tuple[int, ...]) -> Iterator[Fragment]:
    at = ref.byte_offset
    cells = (range(lo, lo + n) for lo, n in zip(chunk.lo[:-1], chunk.size[:-1], strict=True))
    for cell in product(*cells):
        for box in flat_to_boxes(chunk.lo[-1], chunk.size[-1], block):
            lo = tuple(c * b + a for c, b, a in zip(cell, block, box.lo, strict=True))
            yield Fragment(0, box.volume, chunk.file, at, None, None, Box(lo, box.size))
            at += box.volume * ref.dtype.itemsize


def _no_blocks(what: str, shape: Sequence[int], whole: Sequence[int], why: str) -> ReshardError:
    return source_error(
        "bad-model-space",
        f"{what} of shape {list(shape)} is not {list(whole)} in blocks",
        notes=[why],
        helps=["keep the weights with `--states weights`"],
    )


def _layout(contents: Contents, is_copied: bool) -> str:
    """One rule for all tensors; more where the vocabulary is padded."""
    names, vocabulary = contents.names, contents.vocabulary
    cut = [name for name in names if is_vocabulary(name)] if vocabulary is not None else []
    text = LAYOUT.replace("{\n", f"{{\n    mesh {COPY}\n\n") if is_copied else LAYOUT
    if not cut:
        return text
    heads = {name.partition(".")[0] for name in cut}
    rules = dict.fromkeys(cut, f"[rows truncated to {vocabulary}, ...]")
    for name in names:
        head, dot, _ = name.partition(".")
        rules.setdefault(f"{head}.**" if dot and head not in heads else name, "[...]")
    return text.split('    "**"')[0] + "\n".join(rule_lines(rules)) + "\n}\n"
