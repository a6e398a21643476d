"""Do all ranks hold the same small tensor?  A sign that it is a copy, and not a cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from reshard.plan.catalog import LocalTensor

Verdict = Literal["copies", "constant", "differ"]
_MAX_NBYTES = 1 << 20


def compare_copies(root: Path, tensors: Sequence[LocalTensor]) -> Verdict:
    """Compare a tensor of several ranks.

    Args:  root: what file names are relative to.
    Returns: "copies" if all are equal; "constant" if moreover all their elements are one number,
             which tells nothing; "differ" otherwise, or if they are too large to look at.
    """
    first = tensors[0]
    itemsize = first.dtype.itemsize
    if first.numel * itemsize > _MAX_NBYTES or any(
        (tensor.shape, tensor.dtype) != (first.shape, first.dtype) for tensor in tensors
    ):
        return "differ"
    data = _bytes(root, first)
    if any(_bytes(root, tensor) != data for tensor in tensors[1:]):
        return "differ"
    return "constant" if data == data[:itemsize] * first.numel else "copies"


def _bytes(root: Path, tensor: LocalTensor) -> bytes:
    """The elements of a one-dimensional tensor."""
    itemsize = tensor.dtype.itemsize
    out = []
    for fragment in tensor.fragments:
        step = (fragment.strides or (1,))[0] * itemsize
        with (root / fragment.file).open("rb", buffering=0) as file:
            if step == itemsize:
                file.seek(fragment.byte_offset)
                out.append(file.read(fragment.numel * itemsize))
                continue
            for index in range(fragment.numel):
                file.seek(fragment.byte_offset + index * step)
                out.append(file.read(itemsize))
    return b"".join(out)
