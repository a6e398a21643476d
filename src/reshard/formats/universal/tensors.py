"""The tensors of a universal checkpoint as a catalog lists them."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from reshard.formats.universal.manifest import TensorEntry
from reshard.plan.catalog import Fragment, LocalTensor


def local_tensors(entries: Iterable[TensorEntry]) -> tuple[LocalTensor, ...]:
    """Every tensor as one run on a mesh of one rank."""
    return tuple(
        LocalTensor(
            item.name,
            item.state,
            (),
            item.shape,
            item.dtype,
            (Fragment(0, prod(item.shape), item.file, item.byte_offset),),
        )
        for item in entries
    )
