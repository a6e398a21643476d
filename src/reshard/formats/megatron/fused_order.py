"""Rows of fused query, key and value weights in the order that old checkpoints have them in.

Since checkpoint version 2.0 a rank's rows are, for each head, those of query, of key, of value.
Version 0 has all queries, then all keys, then all values; version 1.0 has, for each head, row 0 of
query, of key, of value, then row 1 of each.
Source: Megatron-LM, megatron/training/checkpointing.py `fix_query_key_value_ordering`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reshard.algebra.box import Box
from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.plan.catalog import Fragment

_FUSED = {
    re.compile(r".*\.query_key_value\.(weight|bias)"): 3,
    re.compile(r".*\.key_value\.(weight|bias)"): 2,
}


@dataclass(frozen=True, slots=True)
class RowOrder:
    """How the rows of one fused tensor lie.

    Args:  parts: 3 for query, key, value.  heads: on the rank.  width: rows of one head and part.
           parts_first: all heads of one part lie together (version 0); else the parts of a row do.
    """

    parts: int
    heads: int
    width: int
    parts_first: bool

    def fragments(
        self,
        shape: tuple[int, ...],
        file: str,
        byte_offset: int,
        itemsize: int,
        strides: tuple[int, ...],
    ) -> tuple[Fragment, ...]:
        """Where the rows are, in the order of version 2.0.

        Args:  byte_offset: of the first stored row.  strides: of the stored tensor, in elements.
        """
        out = []
        rest = shape[1:]
        size = (self.width, *rest)
        numel = self.width
        for extent in rest:
            numel *= extent
        for head in range(self.heads):
            for part in range(self.parts):
                lo = ((head * self.parts + part) * self.width, *(0,) * len(rest))
                row, step = self._stored(head, part)
                at = byte_offset + row * strides[0] * itemsize
                stored = (step * strides[0], *strides[1:])
                out.append(Fragment(0, numel, file, at, stored, None, Box(lo, size)))
        return tuple(out)

    def _stored(self, head: int, part: int) -> tuple[int, int]:
        """The stored row of the first row of a head and part, and how far apart its rows are."""
        if self.parts_first:
            return (part * self.heads + head) * self.width, 1
        return head * self.parts * self.width + part, self.parts


def row_order(
    name: str, shape: tuple[int, ...], version: float, args: Arguments
) -> RowOrder | None:
    """How the rows of a tensor lie; None where they lie as they count.

    Args:  shape: on the rank.
    Raises: ReshardError[fused-rows].
    """
    parts = next((n for pattern, n in _FUSED.items() if pattern.fullmatch(name)), None)
    if version >= 2.0 or parts is None:
        return None
    heads, hidden = args.integer("num_attention_heads"), args.integer("hidden_size")
    width = args.integer("kv_channels") or (hidden // heads if heads and hidden else 0)
    if not width or shape[0] % (parts * width):
        raise source_error(
            "fused-rows",
            f"the {shape[0]} rows of `{name}` are not {parts} times those of whole heads",
            notes=[
                f"checkpoint version {version:g} keeps query, key and value in an order of its own",
                f"a head has {width} rows, as the arguments of {args.file} say"
                if width
                else f"the arguments of {args.file} do not say how many rows a head has",
            ],
            helps=["load it in the Megatron that wrote it, and save it again with a newer one"],
        )
    return RowOrder(parts, shape[0] // parts // width, width, version < 1.0)
