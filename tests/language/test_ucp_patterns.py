"""Every pattern of Universal Checkpointing (arXiv 2406.18820, table 2) as UCL.

Each case has a whole tensor, whose elements are their own flat numbers, and what each rank stores
of it, made by slicing rows and columns (-1 is padding). The compiled rule must store just that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, product
from math import prod

import pytest

from reshard.algebra.split import round_up, split_sizes
from reshard.algebra.term import Extent, segments, stored_shape, term_axes
from reshard.language import evaluate, load_layout
from reshard.language.layout import Rule, Split

Rows = list[list[int]]


@dataclass(frozen=True)
class Case:
    """A layout of one rule, sizes of its axes and mesh, and the rows on each rank."""

    text: str
    sizes: Mapping[str, int]
    mesh: Mapping[str, int]
    ranks: Mapping[tuple[int, ...], Rows]


def numbered(rows: int, columns: int) -> Rows:
    return [[row * columns + column for column in range(columns)] for row in range(rows)]


W = numbered(4, 6)
FIVE = numbered(5, 2)
QKV = numbered(4 + 2 + 2, 3)
EXPERTS = numbered(3 * 4, 2)

CASES = {
    "unique": Case(
        'layout l { mesh pp "w" = [_, _] on first stage }',
        {"_0": 4, "_1": 6},
        {"pp": 1},
        {(0,): W},
    ),
    "replicate": Case(
        'layout l { mesh tp "w" = [_, _] }',
        {"_0": 4, "_1": 6},
        {"tp": 2},
        {(0,): W, (1,): W},
    ),
    "partial": Case(
        'layout l { mesh tp "w" = [_, _] averaged over tp }',
        {"_0": 4, "_1": 6},
        {"tp": 2},
        {(0,): W, (1,): W},
    ),
    "shard-V": Case(
        'layout l { mesh tp "w" = [rows over tp, _] }',
        {"rows": 4, "_0": 6},
        {"tp": 2},
        {(0,): W[:2], (1,): W[2:]},
    ),
    "shard-H": Case(
        'layout l { mesh tp "w" = [_, columns over tp] }',
        {"_0": 4, "columns": 6},
        {"tp": 2},
        {(r,): [row[3 * r : 3 * r + 3] for row in W] for r in range(2)},
    ),
    "shard-Hy": Case(
        'layout l { mesh dp, tp "w" = [rows over dp, columns over tp] }',
        {"rows": 4, "columns": 6},
        {"dp": 2, "tp": 3},
        {
            (d, t): [row[2 * t : 2 * t + 2] for row in W[2 * d : 2 * d + 2]]
            for d in range(2)
            for t in range(3)
        },
    ),
    "shard over two mesh axes": Case(
        'layout l { mesh dp, tp "w" = [_, columns over (tp, dp)] }',
        {"_0": 4, "columns": 6},
        {"dp": 2, "tp": 3},
        {(d, t): [row[2 * t + d : 2 * t + d + 1] for row in W] for d in range(2) for t in range(3)},
    ),
    "shard-NC, experts in one tensor": Case(
        'layout l { mesh tp "w" = [experts:3 hidden over tp, _] }',
        {"experts": 3, "hidden": 4, "_0": 2},
        {"tp": 2},
        {(r,): [EXPERTS[4 * e + 2 * r + i] for e in range(3) for i in range(2)] for r in range(2)},
    ),
    "shard-NC, unequal parts": Case(
        'layout l { mesh tp "w" = [(q:4 over tp + k:2 over tp + v:2 over tp), _] }',
        {"q": 4, "k": 2, "v": 2, "_0": 3},
        {"tp": 2},
        {(r,): [*QKV[2 * r : 2 * r + 2], QKV[4 + r], QKV[6 + r]] for r in range(2)},
    ),
    "shard-NC, unequal parts of unequal widths": Case(
        'layout l { mesh tp "w" = [(q:4 over tp as (3, 1) + k:2 over tp + v:2 over tp), _] }',
        {"q": 4, "k": 2, "v": 2, "_0": 3},
        {"tp": 2},
        {(0,): [*QKV[:3], QKV[4], QKV[6]], (1,): [QKV[3], QKV[5], QKV[7]]},
    ),
    "padding, stripped to a length": Case(
        'layout l { mesh tp "w" = [rows over tp truncated to 5, _] }',
        {"rows": 6, "_0": 2},
        {"tp": 2},
        {(0,): FIVE[:3], (1,): [*FIVE[3:], [-1, -1]]},
    ),
    "padding, to a multiple": Case(
        'layout l { mesh tp "w" = [rows over tp padded to a multiple of 2 * tp, _] }',
        {"rows": 5, "_0": 2},
        {"tp": 2},
        {(0,): FIVE[:4], (1,): [FIVE[4], *[[-1, -1]] * 3]},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_pattern(case: Case) -> None:
    (rule,) = load_layout(case.text).rules
    found = {
        coord: stored(rule, case, dict(zip(case.mesh, coord, strict=True))) for coord in case.ranks
    }
    assert len(found) == prod(case.mesh.values())
    assert found == {coord: list(chain(*rows)) for coord, rows in case.ranks.items()}


def test_what_is_said_of_copies() -> None:
    rules = {name: load_layout(case.text).rules[0] for name, case in CASES.items()}
    assert rules["unique"].stage == "first"
    assert rules["partial"].averaged_over == ("tp",)
    assert rules["replicate"].averaged_over == ()
    assert not rules["replicate"].splits


def test_zero_partitions_are_apart_from_the_mesh_of_models() -> None:
    layout = load_layout(
        """
        layout l {
            mesh dp
            "**" = [...]
            file "rank{dp}.pt" { states at "{state}/{name}" }
            partition exp_avg over dp as buffer align 2 * dp
            partition exp_avg_sq over dp as each
            partition master over dp as rows
        }
        """
    )
    assert [item.kind for item in layout.partitions] == ["buffer", "each", "rows"]


def stored(rule: Rule, case: Case, coord: Mapping[str, int]) -> list[int]:
    """The elements that a rank stores, by their numbers in the whole tensor; -1 for padding."""
    axes = [axis for term in rule.dims for axis in term_axes(term)]
    extents = {a: extent(case.sizes[a], rule.splits.get(a), case.mesh, coord) for a in axes}
    none: dict[str, int] = dict.fromkeys(case.mesh, 0)
    one = dict.fromkeys(case.mesh, 1)
    lengths = {a: extent(case.sizes[a], rule.splits.get(a), one, none).size for a in axes}
    whole = segments(rule.dims, {axis: Extent.whole(size) for axis, size in lengths.items()})
    out = [-1] * prod(stored_shape(rule.dims, extents))
    for local, total in zip(segments(rule.dims, extents), whole, strict=True):
        steps = dict(total.strides)
        for index in product(*(range(extents[axis].size) for axis, _ in local.strides)):
            at, number = local.offset, total.offset
            for position, (axis, stride) in zip(index, local.strides, strict=True):
                at += position * stride
                number += (extents[axis].lo + position) * steps[axis]
            assert out[at] == -1
            out[at] = number
    return out


def extent(
    size: int, split: Split | None, mesh: Mapping[str, int], coord: Mapping[str, int]
) -> Extent:
    """What one rank has of an axis, by the words of the language."""
    if split is None:
        return Extent.whole(size)
    total, length = size, size
    if split.truncated_to is not None:
        length = int(evaluate(split.truncated_to, mesh))
    if split.pad_to is not None:
        total = round_up(size, int(evaluate(split.pad_to, mesh)))
    block, parts = 0, 1
    for axis in split.over:
        block, parts = block * mesh[axis] + coord[axis], parts * mesh[axis]
    if parts == 1:
        return Extent(0, length, total)
    sizes = split_sizes(total, parts, split.rule, split.sizes)
    lo = sum(sizes[:block])
    return Extent(lo, max(0, min(sizes[block], length - lo)), sizes[block])
