"""The fp32 masters of a checkpoint and its weights: samples of both are compared, halves joined.

A weight in bf16 or fp16 is its master rounded to nearest, ties to even; or upwards, where an
optimizer stores the halves of a master apart. `--use-precision-aware-optimizer` stores of each fp32
master the 16 bits that its bf16 weight does not have, as int16 or as fp32 numbers of the same
values. And Megatron-core 0.14 to 0.16 shifts optimizer states when it saves several buckets as
`fully_reshardable`: the masters then do not round to the weights.
Source: megatron/core/optimizer/distrib_optimizer.py (core 0.11 to 0.19); Transformer Engine,
`FusedAdam` with `store_param_remainders`; Megatron-LM pull request 5077.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.megatron.modules import is_vocabulary
from reshard.models.run_arguments import Arguments
from reshard.plan.catalog import Fragment, LocalTensor, Upper
from reshard.run.rounding import SAMPLE, rounds_to, samples
from reshard.run.states import MASTER, PARAM
from reshard.store.source_files import SourceFiles

_MANY = 17
"""Samples that whole masters would not all show as lower halves."""


def are_lower(masters: Sequence[LocalTensor], args: Arguments, files: SourceFiles) -> bool:
    """Whether masters are stored as their lower halves, to judge by their type and by samples."""
    kinds = {tensor.dtype for tensor in masters}
    if not args.is_precise or kinds != {DType.F32}:
        return kinds == {DType.I16}
    return all(
        _are_remainders(files.pread(f.file, f.byte_offset + 4 * start, 4 * count))
        for master in masters
        for f in master.fragments
        if f.strides is None
        for start, count in samples(f.numel, _MANY)
    )


def _are_remainders(data: bytes) -> bool:
    """Whether fp32 elements are whole numbers of 16 bits."""
    values = struct.unpack(f"<{len(data) // 4}f", data)
    return all(-32768 <= value <= 32767 and value == int(value) for value in values)


def join_masters(
    weights: Sequence[LocalTensor],
    states: Sequence[LocalTensor],
    args: Arguments,
    files: SourceFiles,
) -> list[LocalTensor]:
    """The states, masters of which only the lower halves are stored joined with their weights."""
    halves = {t.name: t for t in weights if t.state == PARAM and t.dtype == DType.BF16}
    masters = [t for t in states if t.state == MASTER and t.name in halves]
    by_type = [[t for t in masters if t.dtype == kind] for kind in (DType.I16, DType.F32)]
    lower = {t.name for kind in by_type if are_lower(kind, args, files) for t in kind}
    is_lower = [t.state == MASTER and t.name in lower for t in states]
    pairs = zip(states, is_lower, strict=True)
    return [_whole_master(halves[t.name], t) if joins else t for t, joins in pairs]


def _whole_master(weight: LocalTensor, lower: LocalTensor) -> LocalTensor:
    """A master whose fragments are both halves."""
    exact = {box_of(weight, f): f for f in weight.fragments if f.strides is None}
    out: list[Fragment] = []
    for fragment in lower.fragments:
        same = exact.get(box_of(lower, fragment))
        for other in [same] if same is not None else weight.fragments:
            out += joined_halves(lower, fragment, weight, other)
    return LocalTensor(lower.name, MASTER, lower.coord, lower.shape, DType.F32, tuple(out))


def joined_halves(
    lower: LocalTensor, fragment: Fragment, weight: LocalTensor, other: Fragment
) -> Iterator[Fragment]:
    """The elements that two fragments share, as boxes that lie in one run in both."""
    inner, outer = box_of(lower, fragment), box_of(weight, other)
    common = inner.intersect(outer)
    if common is None or not common.volume:
        return
    split = len(common.size)
    dense = fragment.strides is None and other.strides is None
    # an axis joins the run if what is behind it is whole in both
    while split and dense and common.size[split:] == inner.size[split:] == outer.size[split:]:
        split -= 1
    size = (*(1,) * split, *common.size[split:])
    for index in product(*map(range, common.size[:split])):
        lo = tuple(a + i for a, i in zip(common.lo, index, strict=False)) + common.lo[split:]
        upper = other.byte_offset + DType.BF16.itemsize * _element(other, outer, lo)
        yield Fragment(
            0,
            prod(size),
            fragment.file,
            fragment.byte_offset + lower.dtype.itemsize * _element(fragment, inner, lo),
            box=Box(lo, size),
            upper=Upper(other.file, upper, lower.dtype),
        )


def check_masters(tensors: Iterable[LocalTensor], args: Arguments, files: SourceFiles) -> None:
    """Compare samples of every master with its weight; of a vocabulary without padding.

    Raises: ReshardError[shifted-optimizer].
    """
    weights = {t.name: t for t in tensors if t.state == PARAM}
    masters = [
        t
        for t in tensors
        if t.state == MASTER and t.name in weights and not any(f.upper for f in t.fragments)
    ]
    wrong: list[str] = []
    for master in masters:
        weight = weights[master.name]
        rows = weight.shape[0] if weight.shape else 1
        compared_rows = args.checked_rows(rows) if is_vocabulary(master.name) else rows
        same = weight.shape == master.shape and master.dtype == DType.F32
        if same and not _agree(files, weight, master, compared_rows):
            wrong.append(master.name)
    if wrong:
        raise source_error(
            "shifted-optimizer",
            f"the optimizer's fp32 weights of {len(wrong)} of {len(masters)} tensors "
            "do not round to the weights",
            notes=[
                f"first: `{wrong[0]}`, in {files.root}",
                "Megatron-core 0.14 to 0.16 writes such files when its optimizer has several "
                "buckets: all of its states are then shifted",
            ],
            helps=[
                "convert the weights with `--states weights`, and continue without these states",
                "or go back to a checkpoint in another format of the same run",
            ],
        )


def _agree(files: SourceFiles, weight: LocalTensor, master: LocalTensor, rows: int) -> bool:
    for lo, count in _samples_of(weight, rows):
        value, exact = _read(files, weight, lo, count), _read(files, master, lo, count)
        if value is None or exact is None:
            continue
        if not rounds_to(exact, value, weight.dtype, ties_up=True):
            return False
    return True


def _samples_of(tensor: LocalTensor, rows: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Short runs along the last dimension: in the first, middle, and last row of every chunk.

    Args:  rows: those behind are not looked at.
    """
    for fragment in tensor.fragments:
        lo, size = (box := box_of(tensor, fragment)).lo, box.size
        if size:
            size = (max(0, min(size[0], rows - lo[0])), *size[1:])
        if not all(size):
            continue
        width = size[-1] if size else 1
        count = min(SAMPLE, width)
        for part in (0.0, 0.5, 1.0):
            row = tuple(a + int((n - 1) * part) for a, n in zip(lo[:-1], size[:-1], strict=True))
            last = (lo[-1] + int((width - count) * part),) if size else ()
            yield (*row, *last), count


def _read(files: SourceFiles, tensor: LocalTensor, lo: tuple[int, ...], count: int) -> bytes | None:
    """A run, where one dense fragment holds all of it."""
    run = Box(lo, (*(1,) * (len(lo) - 1), count) if lo else ())
    for fragment in tensor.fragments:
        box = box_of(tensor, fragment)
        if fragment.strides is None and box.intersect(run) == run:
            size = tensor.dtype.itemsize
            at = fragment.byte_offset + size * _element(fragment, box, lo)
            return files.pread(fragment.file, at, size * count)
    return None


def box_of(tensor: LocalTensor, fragment: Fragment) -> Box:
    """What a fragment holds of its tensor."""
    return fragment.box or Box.whole(tensor.shape)


def _element(fragment: Fragment, box: Box, lo: tuple[int, ...]) -> int:
    """The element of a fragment at a place."""
    steps = fragment.strides or row_major(box.size)
    return sum((x - a) * step for x, a, step in zip(lo, box.lo, steps, strict=True))
