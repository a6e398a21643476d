"""Tied weights, which a state dict stores under each of their names.

An optimizer trains them once, so all names but one are without states. That two names are one
tensor is established by their bytes: the checksums of all chunks are equal, and so are the first
bytes. Copies are compared bit for bit when they are read.
Source: torch/distributed/checkpoint/state_dict.py `_get_fqns`; torch/serialization.py (2.13).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod

from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_records import StoredTensor

_FLAG = "tie_word_embeddings"
_HEAD = 4096
"""Bytes of every chunk that are compared at once."""


def find_tied(
    weights: Sequence[tuple[str, StoredTensor]],
    trained: Collection[str],
    chunks: ChunkReader,
    config: Mapping[str, object],
) -> dict[str, str]:
    """Names that are another name of a tensor: alias -> the name that it is trained under.

    Args:  weights: of the model, with their names.
           trained: names that the optimizer has; none where there is no optimizer, or it counts.
           config: of the model; what it says of tied weights wins over what is stored.
    """
    is_tied = config.get(_FLAG)
    if is_tied is False:
        return {}
    by_kind: dict[object, list[tuple[str, StoredTensor]]] = {}
    for name, stored in weights:
        if len(stored.shape) > 1 and prod(stored.shape) > 1:
            by_kind.setdefault((stored.shape, stored.dtype), []).append((name, stored))
    out: dict[str, str] = {}
    for same in by_kind.values():
        if len(same) > 1:
            out.update(_tied_of(same, trained, chunks, is_said=is_tied is True))
    return out


def _tied_of(
    same: Sequence[tuple[str, StoredTensor]],
    trained: Collection[str],
    chunks: ChunkReader,
    *,
    is_said: bool,
) -> Iterable[tuple[str, str]]:
    """Pairs among tensors of one shape."""
    if trained:
        owners = [item for item in same if item[0] in trained]
        others = [item for item in same if item[0] not in trained]
    else:
        # Layers may be alike before they are trained; embedding and head are in no layer.
        plain = [item for item in same if not any(p.isdigit() for p in item[0].split("."))]
        owners, others = plain[:1], plain[1:]
    if not owners or not others:
        return
    prints = {_print(chunks, stored): name for name, stored in reversed(owners)}
    for name, stored in others:
        found = _print(chunks, stored)
        if found is not None and found in prints:
            yield name, prints[found]
        elif is_said and len(owners) == len(others) == 1 and not _numbered(name):
            yield name, owners[0][0]  # they must agree, and do not: reading them says so


def _numbered(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _print(chunks: ChunkReader, stored: StoredTensor) -> object:
    """What tensors of equal elements, cut alike, have in common; None for one of equal elements."""
    found: list[object] = []
    words: set[bytes] = set()
    size = stored.dtype.itemsize
    for chunk in sorted(stored.chunks, key=lambda item: item.lo):
        crc, head = chunks.print_of(stored, chunk, _HEAD)
        found.append((chunk.lo, chunk.size, crc, head))
        words.update(head[at : at + size] for at in range(0, len(head), size))
    return tuple(found) if len(words) > 1 else None
