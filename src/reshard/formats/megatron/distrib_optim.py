"""`distrib_optim.pt`: the states of the distributed optimizer, gathered over data-parallel ranks.

Source: megatron/core/optimizer/distrib_optimizer.py `get_parameter_state_dp_zero`
(core 0.6 to 0.20).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.buffers import Geometry, Placed, lay_buffer
from reshard.formats.megatron.optimizer_ids import Parameter
from reshard.formats.megatron.self_check import (
    Sampler,
    are_remainders,
    rounds_to,
    samples,
    spread,
)
from reshard.plan.catalog import Left
from reshard.storage.pickle_values import dtype_of_global
from reshard.storage.torch_file import TensorRef

_COUNTS = ("numel_unpadded",)
_SAID = ("buckets_coalesced",)
"""Entries beside the buffers; the buffers show the same."""

_MOST_PADDING = 1 << 17
"""Elements behind a bucket: it is padded for the number of ranks, or to 2^16 for fast transfers."""

STATES = {"param": "master"}
"""What the buffers' keys are called here; others keep their names."""


@dataclass(frozen=True, slots=True)
class FlatState:
    """One state of one parameter: a run of a flat tensor.

    Args:  is_lower: the elements are the lower halves of masters, the upper ones are the weights.
    """

    parameter: Parameter
    state: str
    ref: TensorRef
    start: int
    is_lower: bool = False


def flat_states(
    root: object,
    parameters: Sequence[Parameter],
    args: Arguments,
    *,
    file: str,
    weights_file: str,
    sampler: Sampler,
    first_stage: bool,
    shared: Sequence[str],
) -> Iterator[FlatState]:
    """Every state of every parameter of one optimizer.

    Args:  root: `{buffer: {(param dtype, grad dtype): {state: flat tensor, ...}}}`.
           parameters: of the optimizer, in order, over all model chunks.
           file, weights_file: relative to the iteration's folder.
           first_stage: on later pipeline stages nothing is bucketed.
           shared: embeddings that two stages share.
    Raises: ReshardError[buffer-mismatch].
    """
    if not isinstance(root, dict):
        raise _mismatch(file, "it holds no buffers")
    buffers = [
        (key, kinds, value)
        for key, item in root.items()
        if isinstance(key, int) and isinstance(item, dict)
        for kinds, value in item.items()
    ]
    waiting = _by_buffer(parameters)
    if len(buffers) != len(waiting):
        raise _mismatch(file, f"it has {len(buffers)} buffers, the weights ask for {len(waiting)}")
    for (key, kinds, tensors), (dtype, members) in zip(buffers, waiting, strict=True):
        stated = dtype_of_global(kinds[0]) if isinstance(kinds, tuple) else None
        if stated is not None and stated != dtype:
            raise _mismatch(file, f"buffer {key} is of {stated} parameters, not {dtype}")
        if not isinstance(tensors, dict):
            raise _mismatch(file, f"buffer {key} holds no tensors")
        yield from _buffer(
            key, tensors, members, args, file, weights_file, sampler, first_stage, shared
        )


def unread(root: object, file: str) -> Iterator[Left]:
    """The entries of a file of buffers that are none, nor say how buffers were saved.

    Args:  root: of one optimizer, or of several.
    """
    for item in root if isinstance(root, list) else [root]:
        for key, value in item.items() if isinstance(item, dict) else ():
            if key not in _SAID and not (isinstance(key, int) and isinstance(value, dict)):
                yield Left(file, str(key), "it is no buffer of an optimizer")


def _by_buffer(parameters: Sequence[Parameter]) -> list[tuple[DType, list[Parameter]]]:
    """One buffer for each model chunk and element type, in order of appearance."""
    out: dict[tuple[int, DType], list[Parameter]] = {}
    for parameter in parameters:
        out.setdefault((parameter.chunk, parameter.ref.dtype), []).append(parameter)
    return [(dtype, members) for (_, dtype), members in out.items()]


def _buffer(
    key: int,
    tensors: Mapping[object, object],
    members: Sequence[Parameter],
    args: Arguments,
    file: str,
    weights_file: str,
    sampler: Sampler,
    first_stage: bool,
    shared: Sequence[str],
) -> Iterator[FlatState]:
    flats = {str(name): _Flat.of(value) for name, value in tensors.items() if name not in _COUNTS}
    lengths = {flat.lengths for flat in flats.values() if flat is not None}
    if len(lengths) != 1 or None in flats.values():
        raise _mismatch(file, f"the tensors of buffer {key} have different lengths")
    shape = lengths.pop()
    numel = sum(p.numel for p in members)
    sizes = bucket_sizes(args, first_stage and members[0].chunk == 0, numel)
    lower = _holds_lower(flats.get("param"), members, args, file, sampler)
    fitting: dict[tuple[tuple[int, int], ...], Geometry[Parameter]] = {}
    for bucket_size, aligned in product(sizes, (True, False)):
        geometry = lay_buffer(members, bucket_size, data_parallel(args), shared, aligned=aligned)
        if _is_long(geometry, shape, coalesced=_is_coalesced(flats)) and (
            lower or _fits(geometry, flats, file, weights_file, sampler)
        ):
            places = ((place.bucket, place.start) for place in geometry.placed)
            fitting.setdefault(tuple(places), geometry)
    if len({tuple(start for _, start in places) for places in fitting}) != 1:
        raise _mismatch(
            file,
            f"{len(fitting)} known ways of laying {numel} elements of parameters fit "
            f"buffer {key} of {sum(shape)} elements",
        )
    found = next(iter(fitting.values()))
    for name, flat in flats.items():
        assert flat is not None
        for place in found.placed:
            ref, start = flat.locate(place)
            apart = lower and name == "param"
            yield FlatState(place.parameter, STATES.get(name, name), ref, start, apart)


@dataclass(frozen=True, slots=True)
class _Flat:
    """A flat tensor: one for all buckets, or one for each as files before 2024 have.

    Args:  coalesced: whether it is one for all, in which tails are without their padding.
    """

    runs: tuple[TensorRef, ...]
    coalesced: bool

    @staticmethod
    def of(value: object) -> _Flat | None:
        """What is stored; None where that is no tensor."""
        if isinstance(value, TensorRef):
            return _Flat((value,), True)
        runs = (
            tuple(r for r in value if isinstance(r, TensorRef)) if isinstance(value, list) else ()
        )
        return _Flat(runs, False) if runs and len(runs) == len(value) else None  # type: ignore[arg-type]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Elements of every tensor."""
        return tuple(ref.numel for ref in self.runs)

    def locate(self, place: Placed[Parameter]) -> tuple[TensorRef, int]:
        """The tensor that holds a parameter, and where it starts there."""
        if self.coalesced:
            return self.runs[0], place.start
        return self.runs[place.bucket], place.start_in_bucket


def _is_coalesced(flats: Mapping[str, _Flat | None]) -> bool:
    return all(flat is not None and flat.coalesced for flat in flats.values())


def _is_long(geometry: Geometry[Parameter], lengths: tuple[int, ...], *, coalesced: bool) -> bool:
    """Whether buckets have the stored lengths; single ones with their padding or without."""
    if coalesced:
        return lengths == (geometry.numel,)
    return len(lengths) == len(geometry.buckets) and all(
        bucket <= length < bucket + _MOST_PADDING
        for length, bucket in zip(lengths, geometry.buckets, strict=True)
    )


def bucket_sizes(args: Arguments, bucketed: bool, numel: int) -> list[int | None]:
    """Bucket sizes to try, each once: what the run said, none, and the default.

    Args:  bucketed: later pipeline stages, and later chunks, have one bucket.
    """
    if not bucketed:
        return [None]
    stated, count = args.integer("ddp_bucket_size"), args.integer("ddp_num_buckets")
    sizes: list[int | None] = [stated] if stated else []
    sizes += [numel // count] if count else []
    return list(dict.fromkeys([*sizes, None, max(40_000_000, 1_000_000 * data_parallel(args))]))


def data_parallel(args: Arguments) -> int:
    """Ranks that share a buffer; those of context parallelism do, too."""
    return args.size("dp") * (args.integer("context_parallel_size") or 1)


def _fits(
    geometry: Geometry[Parameter],
    flats: Mapping[str, _Flat | None],
    file: str,
    weights_file: str,
    sampler: Sampler,
) -> bool:
    """Whether samples of every parameter's master round to its weight."""
    masters = flats.get("param")
    if masters is None:
        return True
    for place in geometry.placed:
        weight = place.parameter.ref
        if not weight.is_contiguous:
            continue
        ref, base = masters.locate(place)
        if ref.dtype != DType.F32:
            return False
        size = weight.dtype.itemsize
        checked = place.parameter.checked
        for start, count in samples(weight.numel if checked < 0 else checked):
            master = sampler.read(file, ref.byte_offset + 4 * (base + start), 4 * count)
            value = sampler.read(weights_file, weight.byte_offset + size * start, size * count)
            if not rounds_to(master, value, weight.dtype):
                return False
    return True


def _holds_lower(
    masters: _Flat | None,
    members: Sequence[Parameter],
    args: Arguments,
    file: str,
    sampler: Sampler,
) -> bool:
    """Whether a buffer of masters holds the lower half of each: as int16, or as those numbers."""
    if masters is None or any(
        p.ref.dtype != DType.BF16 or not p.ref.is_contiguous for p in members
    ):
        return False
    kinds = {ref.dtype for ref in masters.runs}
    if kinds == {DType.I16}:
        return True
    return (
        args.is_precise
        and kinds == {DType.F32}
        and all(
            are_remainders(sampler.read(file, ref.byte_offset + 4 * start, 4 * count))
            for ref in masters.runs
            for start, count in spread(ref.numel)
        )
    )


def _mismatch(file: str, why: str) -> ReshardError:
    return source_error(
        "buffer-mismatch",
        f"how the parameters lie in {file} could not be found",
        notes=[why, "the flat buffers are checked against the weights, which they must round to"],
        helps=["leave the optimizer out with `--states weights`"],
    )
