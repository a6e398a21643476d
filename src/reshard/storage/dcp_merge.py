"""Joins the `.metadata` that every rank wrote for itself, when they did not talk while saving.

Source: torch/distributed/checkpoint/state_dict_saver.py, `use_collectives=False` (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from reshard.storage.dcp_records import Chunk, Metadata, Offsets, StoredTensor


class DisagreementError(Exception):
    """What ranks tell differently."""


def merge(parts: Sequence[Metadata]) -> Metadata:
    """One metadata of several.

    A box that several ranks hold was written by each of them; the copies are tensors of their own.

    Args:  parts: of the ranks, in their order.
    Raises: DisagreementError.
    """
    firsts: dict[str, StoredTensor] = {}
    boxes: dict[str, dict[tuple[Offsets, Offsets], list[Chunk]]] = {}
    for part in parts:
        for tensor in part.tensors:
            first = firsts.setdefault(tensor.name, tensor)
            if (first.shape, first.dtype) != (tensor.shape, tensor.dtype):
                raise DisagreementError(
                    f"`{tensor.name}` is {first.dtype} of shape {list(first.shape)} for one rank, "
                    f"and {tensor.dtype} of shape {list(tensor.shape)} for another"
                )
            chunks_of = boxes.setdefault(tensor.name, {})
            for chunk in tensor.chunks:
                chunks_of.setdefault((chunk.lo, chunk.size), []).append(chunk)
    tensors = [
        StoredTensor(name, first.dtype, first.shape, chunks, copy)
        for name, first in firsts.items()
        for copy, chunks in enumerate(_copies(name, boxes[name]))
    ]
    return Metadata(
        tuple(tensors),
        tuple(item for part in parts for item in part.objects),
        {key: path for part in reversed(parts) for key, path in part.paths.items()},
        parts[0].version,
        {key: value for part in reversed(parts) for key, value in part.extra.items()},
        tuple(file for part in parts for file in part.files),
        max((tensor.copy + 1 for tensor in tensors), default=1),
    )


def _copies(
    name: str, boxes: dict[tuple[Offsets, Offsets], list[Chunk]]
) -> list[tuple[Chunk, ...]]:
    """The chunks of each copy of a tensor; empty boxes count for nothing."""
    nonempty = {key: chunks for key, chunks in boxes.items() if prod(key[1])} or boxes
    counts = {len(chunks) for chunks in nonempty.values()}
    if len(counts) > 1:
        raise DisagreementError(
            f"some boxes of `{name}` are stored {max(counts)} times, others less"
        )
    return [tuple(c[copy] for c in nonempty.values()) for copy in range(max(counts, default=1))]
