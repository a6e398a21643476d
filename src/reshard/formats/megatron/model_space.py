"""`fully_sharded_model_space`: optimizer tensors whose blocks are stored flat.

A tensor of shape (X, Y) that is cut into blocks of (x, y) is stored as (X/x, Y/y, x*y): the grid of
blocks, and each block row-major, cut along it anywhere.
Source: megatron/core/dist_checkpointing/strategies/resharding.py (core 0.5 to 0.13).
"""

from __future__ import annotations

from itertools import product
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.flat import flat_to_boxes
from reshard.errors import source_error
from reshard.plan.catalog import Fragment
from reshard.storage.dcp_chunks import ChunkReader, check_volume
from reshard.storage.dcp_metadata import Chunk, Metadata, StoredTensor
from reshard.storage.torch_file import TensorRef

_SHAPE = "nd_reformulated_orig_global_shape"


def original_shape(metadata: Metadata, name: str) -> tuple[int, ...] | None:
    """The shape that a tensor has in the model, where it is stored in another."""
    table = metadata.extra.get("mcore_data")
    entry = table.get(name) if isinstance(table, dict) else None
    shape = entry.get(_SHAPE) if isinstance(entry, dict) else None
    return tuple(shape) if isinstance(shape, (tuple, list)) else None


def unfolded(
    chunks: ChunkReader, tensor: StoredTensor, shape: tuple[int, ...]
) -> tuple[Fragment, ...]:
    """Every stored run as boxes of the tensor in its original shape.

    Raises: ReshardError[bad-model-space], and what `ChunkReader` raises.
    """
    check_volume(tensor)
    grid = tensor.shape[:-1]
    if len(grid) != len(shape) or any(not g or s % g for s, g in zip(shape, grid, strict=True)):
        raise source_error(
            "bad-model-space",
            f"`{tensor.name}` of shape {list(tensor.shape)} is not {list(shape)} in blocks",
            notes=["the leading dimensions must be the grid of blocks, the last one a block"],
            helps=["keep the weights with `--states weights`"],
        )
    block = tuple(s // g for s, g in zip(shape, grid, strict=True))
    out: list[Fragment] = []
    for chunk in tensor.chunks:
        out += _boxes(chunks.open(tensor, chunk), chunk, block)
    return tuple(out)


def _boxes(ref: TensorRef, chunk: Chunk, block: tuple[int, ...]) -> list[Fragment]:
    size = ref.dtype.itemsize
    out = []
    at = ref.byte_offset
    start, count = chunk.lo[-1], chunk.size[-1]
    cells = (range(lo, lo + n) for lo, n in zip(chunk.lo[:-1], chunk.size[:-1], strict=True))
    for cell in product(*cells):
        for box in flat_to_boxes(start, count, block):
            lo = tuple(c * b + a for c, b, a in zip(cell, block, box.lo, strict=True))
            numel = prod(box.size)
            out.append(Fragment(0, numel, chunk.file, at, None, None, Box(lo, box.size)))
            at += numel * size
    return out
