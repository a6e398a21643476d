"""Reads a `torch_dist` checkpoint.

Source: megatron/core/dist_checkpointing/strategies/torch.py (core 0.5 to 0.20).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.catalog import catalog_of
from reshard.formats.megatron.common_state import COMMON, common_state
from reshard.formats.megatron.dist_names import FlatKey, StateKey, key_of
from reshard.formats.megatron.dist_optimizer import dist_groups, unread_states
from reshard.formats.megatron.flat_dist import COPY, flat_tensors
from reshard.formats.megatron.groups import Groups
from reshard.formats.megatron.masters import check_masters, join_masters
from reshard.formats.megatron.model_space import original_shape, unfolded
from reshard.formats.megatron.modules import is_vocabulary
from reshard.formats.megatron.zarr_array import zarr_arrays, zarr_objects
from reshard.plan.catalog import Catalog, LocalTensor
from reshard.run.states import EXTRA, PARAM
from reshard.storage.bounded_json import load_bounded
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import Metadata, StoredTensor, read_metadata
from reshard.storage.kept import encode
from reshard.store.regular_file import read_file

_MAX_NBYTES = 1 << 20  # of `metadata.json`

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout megatron_dist {
    "**" = [...] optional
}
"""


def read_dist(folder: Path) -> Catalog:
    """The catalog of a folder with `metadata.json`.

    Raises: ReshardError[unsupported-backend | no-arguments | bad-zarr | incomplete-megatron], and
            what `read_metadata` and `ChunkReader` raise. What is wrong with the optimizer alone is
            kept in the catalog.
    """
    backend = backend_of(folder)
    chunks = ChunkReader(folder)
    chunks.know("metadata.json")
    common = common_state(folder, chunks, backend)
    root, args = common.root, common.args
    content = (_zarr if backend == "zarr" else _torch_dist)(folder, args, chunks)
    weights, raw = content.weights, content.objects
    states: list[LocalTensor] = []
    groups = Groups()
    withheld: tuple[Diagnostic, ...] = ()
    try:
        states = content.states()
        groups, steps = dist_groups(root.get("optimizer"), raw, [*weights, *states], common.file)
        states = [*states, *steps]
    except ReshardError as error:
        if not {item.code for item in error.diagnostics} <= _OF_OPTIMIZER:
            raise
        withheld, states = error.diagnostics, []
    objects = {
        name: encode(value)
        for name, value in raw.items()
        if ".param_state/" not in name and not name.startswith(COMMON)
    }
    copies = 1 + max((index for t in states for _, index in t.coord), default=0)
    names = [t.name for t in weights if t.state == PARAM]
    rows = rows_of(weights)
    true = args.true_vocabulary(rows)
    vocabulary = true if true != rows else None
    return catalog_of(
        folder,
        root,
        args,
        weights,
        states,
        groups,
        layout=_layout(names, vocabulary, copies > 1),
        framework={"form": backend, "saved_over": args.mesh(), "objects": objects},
        mesh={COPY: copies} if copies > 1 else {},
        files=tuple(chunks.files.values()),
        names=names,
        rows=rows,
        vocabulary=vocabulary,
        withheld=withheld,
        left=(*common.left, *unread_states(root.get("optimizer"), common.file)),
    )


@dataclass(frozen=True, slots=True)
class _Content:
    """What is stored beside the common state.

    Args:  states: makes the tensors of the optimizer, and says what is wrong with them.
           objects: pickled ones, by key.
    """

    weights: list[LocalTensor]
    states: Callable[[], list[LocalTensor]]
    objects: Mapping[str, object]


def _torch_dist(folder: Path, args: Arguments, chunks: ChunkReader) -> _Content:
    chunks.know(".metadata")
    metadata = read_metadata(folder)
    objects = {item.name: chunks.object_of(item) for item in metadata.objects}
    keys = [(key_of(stored.name), stored) for stored in metadata.tensors]
    flat = [(key, stored) for key, stored in keys if isinstance(key, FlatKey)]
    named = [(key, stored) for key, stored in keys if isinstance(key, StateKey)]
    weights = [_tensor(k, s, metadata, chunks) for k, s in named if k.state in _WEIGHTS]

    def states() -> list[LocalTensor]:
        tensors = [_tensor(k, s, metadata, chunks) for k, s in named if k.state not in _WEIGHTS]
        tensors = join_masters(folder, weights, tensors, args)
        check_masters(folder, [*weights, *tensors], args)
        if flat or any(".param_state/" in name for name in objects):
            tensors += flat_tensors(folder, flat, objects, args, chunks, weights)
        chunks.refuse_overlaps()
        return tensors

    return _Content(weights, states, objects)


def _zarr(folder: Path, args: Arguments, chunks: ChunkReader) -> _Content:
    half = DType.BF16 if args.get("bf16") else DType.F16 if args.get("fp16") else None
    tensors = []
    for key, array in zarr_arrays(folder, half):
        fragments = array.fragments()
        chunks.files.update({file.path: file for file in array.files})
        tensors.append(LocalTensor(key.name, key.state, (), array.shape, array.dtype, fragments))
    weights = [t for t in tensors if t.state in _WEIGHTS]
    shapes = {t.name: t.shape for t in weights if t.state == PARAM}

    def states() -> list[LocalTensor]:
        others = [t for t in tensors if t.state not in _WEIGHTS]
        for tensor in others:
            if shapes.get(tensor.name, tensor.shape) != tensor.shape and tensor.shape:
                raise source_error(
                    "bad-model-space",
                    f"`{tensor.name}` ({tensor.state}) of shape {list(tensor.shape)} is not "
                    f"{list(shapes[tensor.name])} in blocks",
                    notes=["states of `zarr` are read where they have their parameter's shape"],
                    helps=["keep the weights with `--states weights`"],
                )
        check_masters(folder, [*weights, *others], args)
        return others

    return _Content(weights, states, zarr_objects(folder, chunks))


_WEIGHTS = (PARAM, EXTRA)

_OF_OPTIMIZER = frozenset(
    ("shifted-optimizer", "buffer-mismatch", "bad-model-space", "ambiguous-optimizer-ids")
)
"""Faults that leave the weights as they are."""


def _tensor(
    key: StateKey, tensor: StoredTensor, metadata: Metadata, chunks: ChunkReader
) -> LocalTensor:
    shape = original_shape(metadata, tensor.name)
    if shape is None or shape == tensor.shape:
        fragments, shape = chunks.fragments(tensor), tensor.shape
    else:
        fragments = unfolded(chunks, tensor, shape)
    return LocalTensor(key.name, key.state, (), shape, tensor.dtype, fragments)


def rows_of(weights: Sequence[LocalTensor]) -> int | None:
    """Rows of the embedding."""
    return next((t.shape[0] for t in weights if t.name.endswith("word_embeddings.weight")), None)


def _layout(names: list[str], vocabulary: int | None, is_copied: bool) -> str:
    """One rule for all tensors; more where the vocabulary is padded."""
    cut = [name for name in names if is_vocabulary(name)] if vocabulary is not None else []
    text = LAYOUT.replace("{\n", f"{{\n    mesh {COPY}\n\n") if is_copied else LAYOUT
    if not cut:
        return text
    heads = {name.partition(".")[0] for name in cut}
    rules = dict.fromkeys(cut, f"[rows truncated to {vocabulary}, ...]")
    for name in names:
        head, dot, _ = name.partition(".")
        rules.setdefault(f"{head}.**" if dot and head not in heads else name, "[...]")
    width = max(map(len, rules)) + 2
    lines = [f"    {chr(34) + name + chr(34):<{width}} = {dims}" for name, dims in rules.items()]
    return text.split('    "**"')[0] + "\n".join(lines) + "\n}\n"


def backend_of(folder: Path) -> str:
    """What stores the tensors: `torch_dist`, or `zarr`.

    Raises: ReshardError[unsupported-backend | source-unreadable].
    """
    try:
        content = load_bounded(read_file(folder / "metadata.json", _MAX_NBYTES))
        backend = content.get("sharded_backend") if isinstance(content, dict) else None
    except ValueError:
        backend = None
    if backend not in ("torch_dist", "zarr"):
        raise source_error(
            "unsupported-backend",
            f"{folder} is stored by backend `{backend}`",
            notes=["`torch_dist` and `zarr` are read"],
            helps=["convert it with the Megatron that wrote it"],
        )
    return str(backend)
