"""What is told when places that should agree do not, or when a type cannot hold what is stored."""

from __future__ import annotations

import re

import numpy as np

from reshard.algebra.piece import Piece
from reshard.engine.average import read_box
from reshard.engine.cast import CastError
from reshard.engine.elements import (
    bits_dtype,
    max_difference,
    show_element,
    widened,
)
from reshard.engine.gather import Gatherer, blocks
from reshard.errors import ReshardError, source_error, target_error
from reshard.plan.plan import ArraySpec, Copy, Origin
from reshard.store.source_files import SourceFiles


def cast_refused(spec: ArraySpec, copy: Copy, origin: Origin, loss: CastError) -> ReshardError:
    """The error for elements that the wanted type cannot hold."""
    return target_error(
        "cast-refused",
        f"`{copy.atom}` ({spec.state}) cannot be converted from {origin.dtype} to {spec.dtype}",
        notes=[loss.reason, f"{origin.where} in {_place(origin)}"],
        helps=[f"keep {origin.dtype} for it, or choose a type that can represent its values"],
    )


def replica_mismatch(
    spec: ArraySpec, copy: Copy, files: SourceFiles, *, is_averaged: bool = False
) -> ReshardError:
    """The error for places that differ, after reading the whole box of the copy again.

    Args:  is_averaged: whether the mean was wanted, of numbers that are not averaged.
    """
    first = copy.origins[0]
    gatherer = Gatherer(files)
    for other in copy.origins[1:]:
        numel, largest, where = _count(copy, first, other, gatherer)
        if where is not None:
            break
    else:
        raise AssertionError(f"the copies of {copy.atom} differed and now agree")
    index, left, right = where
    address = copy.move.dst_offset + sum(
        i * step for i, step in zip(index, copy.move.dst_strides, strict=True)
    )
    at = _atom_index(spec, copy.atom, address)
    by = f", by at most {largest:.9g}" if largest is not None else ""
    axes = _varying(first.where, other.where)
    helps = ["to use the first copy everywhere: `--on-drift first`"]
    if not is_averaged:
        averaged = f"averaged over {axes}" if axes else "averaged over AXIS"
        helps = [
            f"if they are meant to be averaged, write `{averaged}` after their rule in the layout",
            "to accept it for all tensors: `--on-drift average` or `--on-drift first`",
        ]
    cannot = f", and {first.dtype} is not averaged" if is_averaged else ""
    return source_error(
        "replica-mismatch",
        f"copies of `{copy.atom}` ({spec.state}) differ{cannot}",
        notes=[
            f"{first.where} in {_place(first)}, {other.where} in {_place(other)}",
            f"{numel} of {copy.numel} elements differ{by}",
            f"first difference at {list(at)}: {left} and {right}",
        ],
        helps=helps,
    )


def _count(
    copy: Copy, first: Origin, other: Origin, gatherer: Gatherer
) -> tuple[int, float | None, tuple[tuple[int, ...], str, str] | None]:
    """How many elements differ, by how much at most, and the first: index in the move, values."""
    numel = 0
    largest: float | None = None
    where: tuple[tuple[int, ...], str, str] | None = None
    for lo, shape in blocks(copy.move.shape):
        left, right = (read_box(origin, lo, shape, gatherer) for origin in (first, other))
        if first.dtype == other.dtype:
            bits = bits_dtype(first.dtype)
            differ = left.view(bits) != right.view(bits)
        else:
            differ = widened(left) != widened(right)
        if not differ.any():
            continue
        flat = np.flatnonzero(differ)
        numel += len(flat)
        a, b = left.reshape(-1)[flat], right.reshape(-1)[flat]
        found = max_difference(a, b)
        if found is not None:
            largest = found if largest is None else max(largest, found)
        if where is None:
            inside = np.unravel_index(flat[0], shape) if shape else ()
            index = tuple(int(i) + x for i, x in zip(inside, lo, strict=True))
            where = index, show_element(a[:1]), show_element(b[:1])
    return numel, largest, where


def _atom_index(spec: ArraySpec, atom: str, address: int) -> tuple[int, ...]:
    """Where in its atom an element of the array belongs."""
    for key, piece in spec.segments:
        index = _index_at(piece, address) if key == atom else None
        if index is not None:
            return index
    raise AssertionError(f"no segment of {spec.label} holds address {address} of {atom}")


def _index_at(piece: Piece, address: int) -> tuple[int, ...] | None:
    rest = address - piece.offset
    index = list(piece.box.lo)
    for axis in sorted(range(len(index)), key=lambda a: -piece.strides[a]):
        size = piece.box.size[axis]
        if size > 1:
            step = min(max(rest // piece.strides[axis], 0), size - 1)
            index[axis] += step
            rest -= step * piece.strides[axis]
    return tuple(index) if rest == 0 else None


def _varying(left: str, right: str) -> str:
    """The mesh axes on which two coordinates, as they are shown, differ."""
    pairs = re.compile(r"(\w+)=(\d+)")
    ours, theirs = dict(pairs.findall(left)), dict(pairs.findall(right))
    return ", ".join(axis for axis in ours if theirs.get(axis, ours[axis]) != ours[axis])


def _place(origin: Origin) -> str:
    return f"`{origin.file}`"
