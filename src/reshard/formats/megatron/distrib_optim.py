"""`distrib_optim.pt`: the states of the distributed optimizer, gathered over data-parallel ranks.

Source: megatron/core/optimizer/distrib_optimizer.py `get_parameter_state_dp_zero`
(core 0.6 to 0.20).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.buffers import Geometry, lay_buffer
from reshard.formats.megatron.optimizer_ids import Parameter
from reshard.formats.megatron.self_check import Sampler, rounds_to, samples
from reshard.storage.pickle_values import dtype_of_global
from reshard.storage.torch_file import TensorRef

STATES = {"param": "master"}
"""What the buffers' keys are called here; others keep their names."""


@dataclass(frozen=True, slots=True)
class FlatState:
    """One state of one parameter: a run of a flat tensor."""

    parameter: Parameter
    state: str
    ref: TensorRef
    start: int


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
    flats = {
        str(name): _runs(value) for name, value in tensors.items() if str(name) != "numel_unpadded"
    }
    lengths = {sum(ref.numel for ref in runs) for runs in flats.values()}
    if len(lengths) != 1 or not all(flats.values()):
        raise _mismatch(file, f"the tensors of buffer {key} have different lengths")
    length = lengths.pop()
    found = None
    for bucket_size in _bucket_sizes(args, first_stage):
        geometry = lay_buffer(members, bucket_size, _dp(args), shared)
        if geometry.numel != length:
            continue
        if _fits(geometry, flats, file, weights_file, sampler):
            found = geometry
            break
    if found is None:
        raise _mismatch(
            file,
            f"buffer {key} of {length} elements is not how "
            f"{sum(p.ref.numel for p in members)} elements of parameters would lie",
        )
    for name, runs in flats.items():
        for place in found.placed:
            ref, start = _locate(runs, place.start)
            yield FlatState(place.parameter, STATES.get(name, name), ref, start)


def _runs(value: object) -> tuple[TensorRef, ...]:
    """A coalesced tensor, or one tensor for each bucket as files before 2024 have."""
    if isinstance(value, TensorRef):
        return (value,)
    if isinstance(value, list):
        return tuple(item for item in value if isinstance(item, TensorRef))
    return ()


def _locate(runs: Sequence[TensorRef], start: int) -> tuple[TensorRef, int]:
    for ref in runs:
        if start < ref.numel:
            return ref, start
        start -= ref.numel
    return runs[-1], start


def _bucket_sizes(args: Arguments, first_stage: bool) -> list[int | None]:
    """Bucket sizes to try: what the run said, then none, then the default."""
    stated = args.integer("ddp_bucket_size")
    default = max(40_000_000, 1_000_000 * _dp(args))
    sizes: list[int | None] = [stated] if stated and first_stage else []
    if args.get("overlap_grad_reduce") and first_stage:
        return [*sizes, default, None]
    return [*sizes, None, default]


def _dp(args: Arguments) -> int:
    return args.size("dp") * (args.integer("context_parallel_size") or 1)


def _fits(
    geometry: Geometry[Parameter],
    flats: Mapping[str, tuple[TensorRef, ...]],
    file: str,
    weights_file: str,
    sampler: Sampler,
) -> bool:
    """Whether samples of every parameter's master round to its weight."""
    runs = flats.get("param")
    if runs is None:
        return True
    for place in geometry.placed:
        weight = place.parameter.ref
        if not weight.is_contiguous:
            continue
        ref, base = _locate(runs, place.start)
        size = weight.dtype.itemsize
        for start, count in samples(weight.numel):
            master = sampler.read(file, ref.byte_offset + 4 * (base + start), 4 * count)
            value = sampler.read(weights_file, weight.byte_offset + size * start, size * count)
            if not rounds_to(master, value, weight.dtype):
                return False
    return True


def _mismatch(file: str, why: str) -> ReshardError:
    return source_error(
        "buffer-mismatch",
        f"how the parameters lie in {file} could not be found",
        notes=[why, "the flat buffers are checked against the weights, which they must round to"],
        helps=["leave the optimizer out with `--states weights`"],
    )
