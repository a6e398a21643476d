"""Rows of fused query, key and value weights in the order that old checkpoints have them in.

Since checkpoint version 2.0 a rank's rows are, for each head, those of query, of key, of value.
Version 0 has all queries, then all keys, then all values; version 1.0 has, for each head, row 0 of
query, of key, of value, then row 1 of each.
Source: Megatron-LM, megatron/training/checkpointing.py `fix_query_key_value_ordering`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import row_major
from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.plan.catalog import Fragment, LocalTensor

_FUSED = {
    re.compile(r".*\.query_key_value\.(weight|bias)"): 3,
    re.compile(r".*\.key_value\.(weight|bias)"): 2,
}
"""Matrices of a head in one tensor."""


def in_order(
    tensor: LocalTensor, shape: tuple[int, ...], version: float, args: Arguments
) -> LocalTensor:
    """A tensor whose rows count as those of version 2.0; itself where they do.

    Args:  tensor: on one rank, of one run.  shape: as stored.
    Raises: ReshardError[fused-rows].
    """
    parts = next((n for pattern, n in _FUSED.items() if pattern.fullmatch(tensor.name)), None)
    if version >= 2.0 or parts is None:
        return tensor
    heads, hidden = args.integer("num_attention_heads"), args.integer("hidden_size")
    width = args.integer("kv_channels") or (hidden // heads if heads and hidden else 0)
    if not width or shape[0] % (parts * width):
        raise source_error(
            "fused-rows",
            f"the {shape[0]} rows of `{tensor.name}` are not {parts} times those of whole heads",
            notes=[
                f"checkpoint version {version:g} keeps query, key and value in an order of its own",
                f"a head has {width} rows, as the arguments of {args.file} say"
                if width
                else f"the arguments of {args.file} do not say how many rows a head has",
            ],
            helps=["load it in the Megatron that wrote it, and save it again with a newer one"],
        )
    (run,) = tensor.fragments
    strides = run.strides or row_major(shape)
    size = (width, *shape[1:])
    runs = []
    heads = shape[0] // parts // width
    for head, part in product(range(heads), range(parts)):
        if version < 1.0:
            row, step = (part * heads + head) * width, 1
        else:
            row, step = head * parts * width + part, parts
        at = run.byte_offset + row * strides[0] * tensor.dtype.itemsize
        lo = ((head * parts + part) * width, *(0,) * len(shape[1:]))
        steps = (step * strides[0], *strides[1:])
        runs.append(Fragment(0, prod(size), run.file, at, steps, None, Box(lo, size)))
    return replace(tensor, fragments=tuple(runs))
