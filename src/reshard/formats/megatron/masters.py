"""The fp32 masters of a distributed checkpoint beside its weights: joined, and held against them.

`--use-precision-aware-optimizer` keeps of each fp32 master the 16 bits that its bf16 weight does
not have; they are stored as int16, or as fp32 numbers of the same values. And Megatron-core 0.14 to
0.16 shifts optimizer states when it saves several buckets as `fully_reshardable`: the masters then
do not round to the weights beside them.
Source: megatron/core/optimizer/distrib_optimizer.py (core 0.11 to 0.19); Transformer Engine,
`FusedAdam` with `store_param_remainders`; Megatron-LM pull request 5077.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.modules import is_vocabulary
from reshard.formats.megatron.self_check import Sampler, are_remainders, rounds_to, spread
from reshard.plan.catalog import Fragment, LocalTensor, Upper
from reshard.run.states import MASTER, PARAM

_RUN = 16


def join_masters(
    folder: Path,
    weights: Sequence[LocalTensor],
    states: Sequence[LocalTensor],
    args: Arguments,
) -> list[LocalTensor]:
    """The states, masters of which only the lower halves are stored joined with their weights."""
    halves = {t.name: t for t in weights if t.state == PARAM and t.dtype == DType.BF16}
    masters = [t for t in states if t.state == MASTER and t.name in halves]
    lower = {t.name for t in masters if t.dtype == DType.I16}
    wide = [t for t in masters if t.dtype == DType.F32]
    if args.is_precise and _hold_lower(folder, wide):
        lower |= {t.name for t in wide}
    return [
        _joined(halves[t.name], t) if t.state == MASTER and t.name in lower else t for t in states
    ]


def _hold_lower(folder: Path, masters: Sequence[LocalTensor]) -> bool:
    """Whether samples of all masters are such numbers, which whole masters would not all be."""
    with Sampler(folder) as sampler:
        return bool(masters) and all(
            are_remainders(sampler.read(f.file, f.byte_offset + 4 * start, 4 * count))
            for master in masters
            for f in master.fragments
            if f.strides is None
            for start, count in spread(f.numel)
        )


def _joined(weight: LocalTensor, lower: LocalTensor) -> LocalTensor:
    """A master whose fragments are both halves: runs that are dense in the files of both."""
    exact = {_box(weight, f): f for f in weight.fragments if f.strides is None}
    out: list[Fragment] = []
    for fragment in lower.fragments:
        box = _box(lower, fragment)
        same = exact.get(box)
        for other in [same] if same is not None else weight.fragments:
            common = box.intersect(_box(weight, other))
            if common is not None and common.volume:
                out += _runs(fragment, box, lower.dtype, other, _box(weight, other), common)
    return LocalTensor(lower.name, MASTER, lower.coord, lower.shape, DType.F32, tuple(out))


def _runs(
    lower: Fragment, inner: Box, dtype: DType, weight: Fragment, outer: Box, common: Box
) -> Iterator[Fragment]:
    """The part that two fragments share, as boxes that lie in one run in both."""
    split = len(common.size)
    dense = lower.strides is None and weight.strides is None
    # an axis joins the run if what is behind it is whole in both
    while split and dense and common.size[split:] == inner.size[split:] == outer.size[split:]:
        split -= 1
    size = (*(1,) * split, *common.size[split:])
    for index in product(*map(range, common.size[:split])):
        lo = tuple(a + i for a, i in zip(common.lo, index, strict=False)) + common.lo[split:]
        at = weight.byte_offset + DType.BF16.itemsize * _at(weight, outer, lo)
        yield Fragment(
            0,
            prod(size),
            lower.file,
            lower.byte_offset + dtype.itemsize * _at(lower, inner, lo),
            box=Box(lo, size),
            upper=Upper(weight.file, at, dtype),
        )


def check_masters(folder: Path, tensors: Iterable[LocalTensor], args: Arguments) -> None:
    """Compare samples of every master with the weight beside it; of a vocabulary without padding.

    Raises: ReshardError[shifted-optimizer].
    """
    weights = {t.name: t for t in tensors if t.state == PARAM}
    masters = [
        t
        for t in tensors
        if t.state == MASTER and t.name in weights and not any(f.upper for f in t.fragments)
    ]
    wrong: list[str] = []
    with Sampler(folder) as sampler:
        for master in masters:
            weight = weights[master.name]
            rows = weight.shape[0] if weight.shape else 1
            checked = args.checked_rows(rows) if is_vocabulary(master.name) else rows
            same = weight.shape == master.shape and master.dtype == DType.F32
            if same and not _agree(sampler, weight, master, checked):
                wrong.append(master.name)
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
    for lo, count in _samples(weight, rows):
        value, exact = _read(sampler, weight, lo, count), _read(sampler, master, lo, count)
        if value is not None and exact is not None and not rounds_to(exact, value, weight.dtype):
            return False
    return True


def _samples(tensor: LocalTensor, rows: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Short runs along the last dimension: in the first, middle and last row of every chunk.

    Args:  rows: those behind are not looked at.
    """
    for fragment in tensor.fragments:
        lo, size = (box := _box(tensor, fragment)).lo, box.size
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


def _read(sampler: Sampler, tensor: LocalTensor, lo: tuple[int, ...], count: int) -> bytes | None:
    """A run, where one dense fragment holds all of it."""
    run = Box(lo, (*(1,) * (len(lo) - 1), count) if lo else ())
    for fragment in tensor.fragments:
        box = _box(tensor, fragment)
        if fragment.strides is None and box.intersect(run) == run:
            size = tensor.dtype.itemsize
            at = fragment.byte_offset + size * _at(fragment, box, lo)
            return sampler.read(fragment.file, at, size * count)
    return None


def _box(tensor: LocalTensor, fragment: Fragment) -> Box:
    return fragment.box or Box.whole(tensor.shape)


def _at(fragment: Fragment, box: Box, lo: tuple[int, ...]) -> int:
    """The element of a fragment at a place."""
    steps = fragment.strides or row_major(box.size)
    return sum((x - a) * step for x, a, step in zip(lo, box.lo, steps, strict=True))
