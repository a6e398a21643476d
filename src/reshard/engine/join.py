"""Master weights whose halves are stored apart: the upper one is the bf16 weight.

Source: Transformer Engine, `FusedAdam` with `store_param_remainders` (2.1 and newer).
"""

from __future__ import annotations

import numpy as np

from reshard.engine.elements import Elements, numpy_dtype
from reshard.errors import ReshardError, source_error
from reshard.plan.catalog import Upper
from reshard.plan.plan import Origin
from reshard.store.source_files import SourceFiles

_BLOCK = 1 << 16
_NBYTES = 4


def read_joined(origin: Origin, upper: Upper, at: int, out: memoryview, files: SourceFiles) -> None:
    """Fill `out` with fp32 numbers, made from their halves in blocks.

    Args:  at: byte position that the first element would have, were they stored as fp32.
    Raises: ReshardError[bad-remainder], and what `files.pread_into` raises.
    """
    first = (at - origin.byte_offset) // _NBYTES
    target = np.frombuffer(out, np.uint32)
    for start in range(0, len(target), _BLOCK):
        part = target[start : start + _BLOCK]
        here = first + start
        weights = np.empty(len(part), np.uint16)
        lower = np.empty(len(part), numpy_dtype(upper.dtype))
        at_weight = upper.byte_offset + here * weights.itemsize
        files.pread_into(upper.file, at_weight, weights.view(np.uint8).data)
        at_lower = origin.byte_offset + here * lower.itemsize
        files.pread_into(origin.file, at_lower, lower.view(np.uint8).data)
        part[...] = joined(weights, lower, origin.file)


def joined(weights: Elements, lower: Elements, file: str) -> Elements:
    """The bits of fp32 numbers.

    Args:  weights: bits of bf16 numbers.  lower: from -32768 to 32767, of any type.
    Raises: ReshardError[bad-remainder].
    """
    if lower.dtype.kind == "f":
        whole = (np.trunc(lower) == lower) & (lower >= -32768) & (lower <= 32767)
        if not np.all(whole):
            raise _bad(lower[~whole][0], file)
    low = lower.astype(np.int32)
    high = (weights.astype(np.int32) - (low < 0)) & 0xFFFF
    return (high.astype(np.uint32) << np.uint32(16)) | (low & 0xFFFF).astype(np.uint32)


def _bad(value: object, file: str) -> ReshardError:
    return source_error(
        "bad-remainder",
        f"{file} has invalid lower halves of master weights",
        notes=[
            f"{value} is not a whole number from -32768 to 32767",
            "a run with `--use-precision-aware-optimizer` stores the 16 bits of each master "
            "weight that its bf16 weight lacks",
        ],
        helps=["the file is damaged; copy it again, or keep the weights with `--states weights`"],
    )
