"""Refuses a `torch_dist` checkpoint whose optimizer is known to be damaged.

Megatron-core 0.14 to 0.16 shifts optimizer states when it saves several buckets as
`fully_reshardable`; the masters then do not round to the weights beside them.
Source: Megatron-LM pull request 5077.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.modules import is_vocabulary
from reshard.formats.megatron.self_check import Sampler, rounds_to
from reshard.plan.catalog import Fragment, LocalTensor

_RUN = 16


def check_masters(folder: Path, tensors: Iterable[LocalTensor], args: Arguments) -> None:
    """Compare samples of every master with the weight beside it; of a vocabulary without padding.

    Raises: ReshardError[shifted-optimizer].
    """
    weights = {t.name: t for t in tensors if t.state == "param"}
    masters = [
        t
        for t in tensors
        if t.state == "master" and t.name in weights and not any(f.upper for f in t.fragments)
    ]
    wrong: list[str] = []
    sampler = Sampler(folder)
    try:
        for master in masters:
            weight = weights[master.name]
            rows = weight.shape[0] if weight.shape else 1
            checked = args.checked_rows(rows) if is_vocabulary(master.name) else rows
            if weight.shape == master.shape and not _agree(sampler, weight, master, checked):
                wrong.append(master.name)
    finally:
        sampler.close()
    if wrong:
        raise source_error(
            "shifted-optimizer",
            f"the optimizer's fp32 weights of {len(wrong)} of {len(masters)} tensors "
            "do not round to the weights beside them",
            notes=[
                f"first: `{wrong[0]}`, in {folder}",
                "Megatron-core 0.14 to 0.16 writes such files when its optimizer has several "
                "buckets: all of its states are then shifted",
            ],
            helps=[
                "keep the weights with `--states weights`, and go on without these states",
                "or go back to a checkpoint in another format of the same run",
            ],
        )


def _agree(sampler: Sampler, weight: LocalTensor, master: LocalTensor, rows: int) -> bool:
    if master.dtype != DType.F32:
        return True
    for lo, count in _runs(weight, rows):
        left = _read(sampler, weight, lo, count)
        right = _read(sampler, master, lo, count)
        if left is not None and right is not None and not rounds_to(right, left, weight.dtype):
            return False
    return True


def _runs(tensor: LocalTensor, rows: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Short runs along the last dimension: in the first, middle and last row of every chunk.

    Args:  rows: those behind are not looked at.
    """
    for fragment in tensor.fragments:
        lo, size = _box(tensor, fragment)
        if size:
            size = (max(0, min(size[0], rows - lo[0])), *size[1:])
        if not all(size):
            continue
        width = size[-1] if size else 1
        count = min(_RUN, width)
        for part in (0.0, 0.5, 1.0):
            row = tuple(a + int((n - 1) * part) for a, n in zip(lo[:-1], size[:-1], strict=True))
            last = (lo[-1] + int((width - count) * part),) if size else ()
            yield (*row, *last), count


def _box(tensor: LocalTensor, fragment: Fragment) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if fragment.box is None:
        return (0,) * len(tensor.shape), tensor.shape
    return fragment.box.lo, fragment.box.size


def _read(sampler: Sampler, tensor: LocalTensor, lo: tuple[int, ...], count: int) -> bytes | None:
    """A run, where one dense fragment holds all of it."""
    for fragment in tensor.fragments:
        start, size = _box(tensor, fragment)
        inside = all(a <= x < a + n for x, a, n in zip(lo, start, size, strict=True))
        if not inside or fragment.strides is not None:
            continue
        if lo and lo[-1] + count > start[-1] + size[-1]:
            continue
        at = 0
        for x, a, n in zip(lo, start, size, strict=True):
            at = at * n + x - a
        itemsize = tensor.dtype.itemsize
        return sampler.read(fragment.file, fragment.byte_offset + at * itemsize, count * itemsize)
    return None
