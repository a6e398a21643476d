"""Do all ranks hold the same small tensor?  A sign that it is a copy, and not a cut.

And do the names of one tied tensor, where each is stored, hold the same elements?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from reshard.errors import ReshardError, source_error
from reshard.plan.catalog import LocalTensor
from reshard.storage.torch_file import TensorRef

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


def check_tied(
    root: Path, file: str, module: Mapping[str, TensorRef], aliases: Mapping[str, str]
) -> None:
    """Compare tied weights that one file stores under several names, each with its own memory.

    Args:  root: what file names are relative to.  aliases: other names of a parameter.
    Raises: ReshardError[replica-mismatch].
    """
    for alias, name in aliases.items():
        one, other = module.get(name), module.get(alias)
        if one is None or other is None or not one.numel or not other.numel:
            continue
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            kinds = (
                f"`{key}` is {ref.dtype} {list(ref.shape)}"
                for key, ref in ((name, one), (alias, other))
            )
            raise _differ(file, name, alias, *kinds)
        if one.storage_key == other.storage_key and one.storage_offset == other.storage_offset:
            continue
        if not one.is_contiguous or not other.is_contiguous:
            continue
        at = _first_difference(root / file, one, other)
        if at is not None:
            raise _differ(file, name, alias, f"the first difference is at element {at}")


def _first_difference(path: Path, one: TensorRef, other: TensorRef) -> int | None:
    """The number of the first element that two tensors of a file do not share."""
    itemsize = one.dtype.itemsize
    nbytes = one.numel * itemsize
    with path.open("rb", buffering=0) as file:
        for start in range(0, nbytes, _MAX_NBYTES):
            pieces = []
            for ref in (one, other):
                file.seek(ref.byte_offset + start)
                pieces.append(file.read(min(_MAX_NBYTES, nbytes - start)))
            a, b = pieces
            if a != b:
                pairs = zip(a, b, strict=False)
                return (start + next(i for i, (x, y) in enumerate(pairs) if x != y)) // itemsize
    return None


def _differ(file: str, name: str, alias: str, *notes: str) -> ReshardError:
    return source_error(
        "replica-mismatch",
        f"copies of `{name}` (param) differ",
        notes=[f"`{alias}` is another name of it, and {file} stores both", *notes],
        helps=[
            "the run that wrote the file would load either into both: find out which one is right"
        ],
    )


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
