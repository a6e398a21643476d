"""Masters of the precision-aware optimizer: what is stored is their lower halves.

`--use-precision-aware-optimizer` keeps of each fp32 master the 16 bits that its bf16 weight does
not have. A distributed checkpoint stores them as int16, or as fp32 numbers of the same values.
Source: megatron/core/optimizer/distrib_optimizer.py (core 0.11 to 0.19); Transformer Engine,
`FusedAdam` with `store_param_remainders`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.dtypes import DType
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.self_check import Sampler, are_remainders, spread
from reshard.plan.catalog import Fragment, LocalTensor, Upper


def join_masters(
    folder: Path,
    weights: Sequence[LocalTensor],
    states: Sequence[LocalTensor],
    args: Arguments,
) -> list[LocalTensor]:
    """The states, masters of which only the lower halves are stored joined with their weights."""
    halves = {t.name: t for t in weights if t.state == "param" and t.dtype == DType.BF16}
    masters = [t for t in states if t.state == "master" and t.name in halves]
    lower = {t.name for t in masters if t.dtype == DType.I16}
    wide = [t for t in masters if t.dtype == DType.F32]
    if args.is_precise and _hold_lower(folder, wide):
        lower |= {t.name for t in wide}
    return [
        joined(halves[t.name], t) if t.state == "master" and t.name in lower else t for t in states
    ]


def _hold_lower(folder: Path, masters: Sequence[LocalTensor]) -> bool:
    """Whether samples of all masters are such numbers, which whole masters would not all be."""
    sampler = Sampler(folder)
    try:
        return bool(masters) and all(
            are_remainders(sampler.read(f.file, f.byte_offset + 4 * start, 4 * count))
            for master in masters
            for f in master.fragments
            if f.strides is None
            for start, count in spread(f.numel)
        )
    finally:
        sampler.close()


def joined(weight: LocalTensor, lower: LocalTensor) -> LocalTensor:
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
    return LocalTensor(lower.name, "master", lower.coord, lower.shape, DType.F32, tuple(out))


def _runs(
    lower: Fragment, inner: Box, dtype: DType, weight: Fragment, outer: Box, common: Box
) -> Iterator[Fragment]:
    """The part that two fragments share, as boxes that lie in one run in both."""
    split = len(common.size)
    dense = lower.strides is None and weight.strides is None
    while split and dense and _is_run(common, inner, outer, split - 1):
        split -= 1
    size = (*(1,) * split, *common.size[split:])
    for index in product(*map(range, common.size[:split])):
        lo = tuple(a + i for a, i in zip(common.lo, index, strict=False)) + common.lo[split:]
        yield Fragment(
            0,
            prod(size),
            lower.file,
            lower.byte_offset + dtype.itemsize * _at(lower, inner, lo),
            box=Box(lo, size),
            upper=Upper(
                weight.file,
                weight.byte_offset + DType.BF16.itemsize * _at(weight, outer, lo),
                dtype,
            ),
        )


def _is_run(common: Box, inner: Box, outer: Box, axis: int) -> bool:
    """Whether the indices of an axis follow each other in both: what is behind it is whole."""
    behind = slice(axis + 1, None)
    return common.size[behind] == inner.size[behind] == outer.size[behind]


def _at(fragment: Fragment, box: Box, lo: tuple[int, ...]) -> int:
    """The element of a fragment at a place."""
    steps = fragment.strides
    if steps is None:
        steps = tuple(prod(box.size[axis + 1 :]) for axis in range(len(box.size)))
    return sum((x - a) * step for x, a, step in zip(lo, box.lo, steps, strict=True))


def _box(tensor: LocalTensor, fragment: Fragment) -> Box:
    return fragment.box or Box.whole(tensor.shape)
