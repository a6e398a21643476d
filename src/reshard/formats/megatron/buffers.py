"""The flat buffers of the distributed optimizer: where each parameter lies in them.

Source: megatron/core/distributed/param_and_grad_buffer.py `_ParamAndGradBuffer.__init__`
(core 0.12 to 0.20).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Generic, Protocol, TypeVar

_PARAM_ALIGNMENT = 64
_BUCKET_ALIGNMENT = 128


class InBuffer(Protocol):
    """A parameter of a rank, as far as its place depends on it."""

    @property
    def name(self) -> str:
        """As the rank calls it."""

    @property
    def numel(self) -> int:
        """Its elements on this rank."""


_P = TypeVar("_P", bound=InBuffer)


@dataclass(frozen=True, slots=True)
class Placed(Generic[_P]):
    """A parameter's place.

    Args:  start: first element in the buffer as it is stored: bucket tails without their padding.
    """

    parameter: _P
    bucket: int
    start: int
    start_in_bucket: int


@dataclass(frozen=True, slots=True)
class Geometry(Generic[_P]):
    """One buffer laid out.

    Args:  buckets: elements of each without its tail's padding.
    """

    placed: tuple[Placed[_P], ...]
    buckets: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of all buckets."""
        return sum(self.buckets)


def lay_buffer(
    parameters: Sequence[_P],
    bucket_size: int | None,
    dp: int,
    shared: Sequence[str] = (),
    *,
    aligned: bool = True,
) -> Geometry[_P]:
    """Walk the parameters backwards, as the optimizer does.

    Args:  parameters: of one buffer, in the order of `named_parameters`.
           bucket_size: elements after which a bucket is closed; None for one bucket.
           dp: data-parallel size, which bucket tails are padded for.
           shared: names of embeddings that two stages share; each has a bucket of its own.
           aligned: whether parameters begin at multiples of 64 elements; not before core 0.6.
    """
    placed: list[Placed[_P]] = []
    buckets: list[int] = []
    at = begin = 0
    open_bucket: list[tuple[_P, int]] = []
    done = 0

    def close(end: int) -> int:
        nonlocal begin, done
        placed.extend(
            Placed(p, len(buckets), done + start - begin, start - begin) for p, start in open_bucket
        )
        open_bucket.clear()
        buckets.append(end - begin)
        done += end - begin
        begin = _round_up(end, lcm(dp, _BUCKET_ALIGNMENT) if aligned else dp)
        return begin

    for parameter in reversed(parameters):
        at = _round_up(at, _PARAM_ALIGNMENT if aligned else 1)
        apart = parameter.name in shared
        if apart and open_bucket:
            at = close(at)
        end = at + parameter.numel
        open_bucket.append((parameter, at))
        full = apart or (bucket_size is not None and end - begin >= bucket_size)
        at = close(end) if full else end
    if open_bucket:
        close(at)
    return Geometry(tuple(placed), tuple(buckets))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
