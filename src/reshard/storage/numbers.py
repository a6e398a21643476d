"""The per-parameter numbers of a source (`step`), read before anything is planned."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError, source_error, warning
from reshard.plan.arrangement import Arrangement, StoredPart, Whole
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.run.states import STEP
from reshard.store.regular_file import pread_regular

_FORMATS = {
    DType.F64: "<d",
    DType.F32: "<f",
    DType.F16: "<e",
    DType.I64: "<q",
    DType.I32: "<i",
    DType.I16: "<h",
    DType.I8: "<b",
    DType.U64: "<Q",
    DType.U32: "<I",
    DType.U16: "<H",
    DType.U8: "<B",
    DType.BOOL: "<?",
}


@dataclass(frozen=True, slots=True)
class Number:
    """One number of one parameter.

    Args:  whole: the tensor of shape () that holds it.
    """

    whole: Whole
    value: int | float


def number_bytes(value: float | int) -> tuple[DType, bytes]:
    """A number that a pickle holds itself: in fp32, which torch counts steps in, where that is
    exact.
    """
    if abs(value) < 1 << 24 and struct.unpack("<f", struct.pack("<f", value))[0] == value:
        return DType.F32, struct.pack("<f", value)
    if isinstance(value, int):
        return DType.I64, value.to_bytes(8, "little", signed=True)
    return DType.F64, struct.pack("<d", value)


def plain_number(value: object) -> tuple[DType, bytes] | None:
    """A number of Python's, in the types that are wide enough; None for anything else."""
    if isinstance(value, bool):
        return DType.BOOL, bytes([value])
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return DType.I64, value.to_bytes(8, "little", signed=True)
    return (DType.F64, struct.pack("<d", value)) if isinstance(value, float) else None


def literal_tensor(
    name: str, state: str, number: tuple[DType, bytes], file: str, coord: Coord = ()
) -> LocalTensor:
    """A number that a pickle holds itself, as a tensor of shape ()."""
    dtype, data = number
    return LocalTensor(name, state, coord, (), dtype, (Fragment(0, 1, file, 0, None, data),))


def number_in(dtype: DType, data: bytes) -> int | float | None:
    """The number that bytes hold; None where they hold none of a type that is known."""
    form = _FORMATS.get(dtype)
    if form is None or len(data) != struct.calcsize(form):
        return None
    value: int | float = struct.unpack(form, data)[0]
    return value


def steps_done(root: Path, tensors: Iterable[LocalTensor]) -> int | None:
    """What every parameter's own count says, where all say the same."""
    found: set[int | float | None] = set()
    for tensor in tensors:
        if tensor.state == STEP and tensor.numel == 1 and len(found) < 2:
            where, size = tensor.fragments[0], tensor.dtype.itemsize
            data = where.literal
            if data is None:
                data = pread_regular(root / where.file, where.byte_offset, size)
            found.add(number_in(tensor.dtype, data))
    step = found.pop() if len(found) == 1 else None
    return int(step) if step is not None and step == step // 1 else None


def first_count(
    counts: Sequence[tuple[str, int]],
) -> tuple[int | None, tuple[Diagnostic, ...]]:
    """The number of steps of a checkpoint, and a warning where it states several.

    Args:  counts: who states it and the number, the surest first.
    """
    if not counts:
        return None, ()
    where, first = counts[0]
    others = tuple(f"{number:,} by {at}" for at, number in counts if number != first)
    if not others:
        return first, ()
    disagreement = warning(
        "steps-disagree",
        f"the checkpoint states several numbers of steps; {first:,}, by {where}, is taken",
        *others,
        helps=(
            "a loss scaler skips steps of the optimizer, and a schedule may count epochs; else "
            "files of two steps may lie together",
        ),
    )
    return first, (disagreement,)


def read_numbers(arrangement: Arrangement, wholes: Iterable[Whole]) -> dict[str, Number]:
    """The numbers of tensors of shape (), by the name of their parameter.

    Raises: ReshardError[numbers-disagree | unreadable-number].
    """
    root = Path(arrangement.catalog.root)
    cache: dict[tuple[str, int, str], int | float] = {}
    out: dict[str, Number] = {}
    for whole in wholes:
        key, piece = whole.segments[0]
        found: dict[int | float, StoredPart] = {}
        for part in arrangement.parts.get((key, whole.state), ()):
            if part.piece.box.lo == piece.box.lo:
                found.setdefault(_value(root, part, cache), part)
        values = list(found)
        if len(values) != 1:
            raise _disagree(whole, found)
        out[whole.name] = Number(whole, values[0])
    return out


def _value(
    root: Path, part: StoredPart, cache: dict[tuple[str, int, str], int | float]
) -> int | float:
    fragment = part.fragments[0]
    form = _FORMATS.get(part.dtype)
    if form is None:
        raise _unreadable(f"is of type {part.dtype}", fragment.file)
    if fragment.literal is not None:
        return _unpack(form, fragment.literal, fragment.file)
    at = fragment.byte_offset + (part.piece.offset - fragment.start) * part.dtype.itemsize
    place = (fragment.file, at, form)
    if place not in cache:
        data = pread_regular(root / fragment.file, at, part.dtype.itemsize)
        cache[place] = _unpack(form, data, fragment.file)
    return cache[place]


def _unpack(form: str, data: bytes, file: str) -> int | float:
    if len(data) != struct.calcsize(form):
        raise _unreadable(f"has {len(data)} bytes", file)
    value: int | float = struct.unpack(form, data)[0]
    return int(value) if isinstance(value, bool) else value


def _unreadable(why: str, file: str) -> ReshardError:
    return source_error(
        "unreadable-number",
        f"a number in {file} {why}",
        notes=["one number of each kind is written per param group, so they are compared"],
        helps=["the file may be truncated, or written by an unknown version"],
    )


def _disagree(whole: Whole, values: dict[int | float, StoredPart]) -> ReshardError:
    items = list(values.items())
    return source_error(
        "numbers-disagree",
        f"copies of `{whole.state}` of `{whole.name}` differ",
        notes=[f"{value:g} in {part.fragments[0].file}" for value, part in items[:4]],
        helps=["the files may be from different steps; copy all files of one step"],
    )
