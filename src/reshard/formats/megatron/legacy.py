"""The weights of a legacy checkpoint: every rank's state dict as local tensors.

Source: Megatron-LM, megatron/training/checkpointing.py `generate_state_dict`,
`fix_query_key_value_ordering`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import row_major
from reshard.errors import ReshardError, source_error
from reshard.formats.megatron.modules import is_buffer, is_expert, tied_names
from reshard.formats.megatron.ranks import RankFile, Ranks
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.run.states import PARAM
from reshard.storage.inert import Record
from reshard.storage.kept import local_tensor
from reshard.storage.torch_file import TensorRef

_FUSED = {
    re.compile(r".*\.query_key_value\.(weight|bias)"): 3,
    re.compile(r".*\.key_value\.(weight|bias)"): 2,
}
"""Matrices of a head in one tensor."""


@dataclass(frozen=True)
class Chunk:
    """One model chunk of one rank file: a stage, or a virtual stage of it.

    Args:  vpp: number of the chunk on its rank.  tensors: by stored name, in order, of no
                place yet.
           streams: the bytes of what modules keep besides tensors, by name.
           objects: names of what else the state dict holds, with what it is.
    """

    rank: RankFile
    vpp: int
    tensors: Mapping[str, LocalTensor]
    streams: Mapping[str, bytes]
    objects: Mapping[str, str]

    @cached_property
    def parameters(self) -> dict[str, LocalTensor]:
        """Those that the optimizer may hold, in the order of `named_parameters`."""
        return {name: item for name, item in self.tensors.items() if not is_buffer(name)}


def chunks_of(rank: RankFile) -> tuple[Chunk, ...]:
    """The model chunks of a rank file, in order.

    Raises: ReshardError[no-model | tensor-subclass].
    """
    numbers = sorted(
        int(key[5:])
        for key in rank.root
        if isinstance(key, str) and key.startswith("model") and key[5:].isdecimal()
    )
    if numbers != list(range(len(numbers))):
        raise _no_model(rank, f"its chunks are {', '.join(f'model{n}' for n in numbers)}")
    keys = [f"model{number}" for number in numbers] or ["model"]
    out = []
    for index, key in enumerate(keys):
        tree = rank.root.get(key)
        if not isinstance(tree, dict):
            raise _no_model(rank, f"its keys are {', '.join(map(str, rank.root))}")
        tensors: dict[str, LocalTensor] = {}
        streams: dict[str, bytes] = {}
        objects: dict[str, str] = {}
        for name, value in _flatten("", tree):
            stream = _stream(value)
            if isinstance(value, TensorRef):
                tensors[name] = local_tensor(value, name, PARAM, (), rank.file)
            elif stream:
                streams[name] = stream
            elif isinstance(value, Record) and "Tensor" in value.name:
                raise _subclass(rank, name, value)
            elif value is not None and stream is None:
                objects[name] = str(value) if isinstance(value, Record) else type(value).__name__
        out.append(Chunk(rank, index, tensors, streams, objects))
    return tuple(out)


def _stream(value: object) -> bytes | None:
    """The bytes of an `io.BytesIO`, in which Transformer Engine kept its states until 1.13."""
    if not isinstance(value, Record) or (value.module, value.name) != ("_io", "BytesIO"):
        return None
    parts = next((state for state in value.state if isinstance(state, tuple)), value.args)
    return bytes(parts[0]) if parts and isinstance(parts[0], (bytes, bytearray)) else b""


def _subclass(rank: RankFile, name: str, value: Record) -> ReshardError:
    kind = next(part for part in value.name.split(".") if "Tensor" in part)
    return source_error(
        "tensor-subclass",
        f"`{name}` is a `{kind}`, which reshard does not read",
        notes=[
            f"in {rank.file}; the class is of `{value.module}`",
            "only that class knows how its elements are made of several tensors",
        ],
        helps=["load it in Megatron, and save it as `torch_dist`, which stores plain tensors"],
    )


def _no_model(rank: RankFile, why: str) -> ReshardError:
    return source_error("no-model", f"{rank.file} contains no model", notes=[why])


def _flatten(prefix: str, tree: Mapping[object, object]) -> Iterator[tuple[str, object]]:
    """Values by dotted name; older models nest their state dicts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def coords_of(chunk: Chunk, name: str, ranks: Ranks, vpp: int) -> tuple[Coord, ...]:
    """Where on the mesh a tensor is: at one place, and at those of ranks that wrote no file.

    An expert's tensor is not cut by ep but lies on one ep rank; a dense one is on all of them.
    """
    rank = chunk.rank
    expert = is_expert(name)
    by_etp = expert and ranks.etp not in (
        1,
        ranks.tp,
    )  # the rest of tp numbers the copies
    out = []
    for tp, ep in ranks.places[rank.file, expert]:
        coord = [("vpp", chunk.vpp)] * (vpp > 1) + [("pp", rank.pp)] * (ranks.pp > 1)
        coord += [("tp", tp // ranks.etp), ("etp", tp % ranks.etp)] * by_etp
        coord += [("tp", tp)] * (ranks.tp > 1 and not by_etp) + [("ep", ep)] * (ranks.ep > 1)
        out.append(tuple(coord))
    return tuple(out)


def as_counted(tensor: LocalTensor, weight: LocalTensor, ranks: Ranks) -> LocalTensor:
    """A weight, or a state of its shape, as its numbers count.

    Grouped experts' weights are views of three dimensions; old checkpoints have rows in other
    orders.

    Args:  weight: as it is stored.
    Raises: ReshardError[shape-mismatch | fused-rows].
    """
    name, shape, args = weight.name, weight.shape, ranks.args
    parts = next((n for pattern, n in _FUSED.items() if pattern.fullmatch(name)), None)
    if ranks.version < 2.0 and parts is not None:
        return _in_order(replace(tensor, shape=shape), parts, ranks)
    if not name.endswith(("experts.weight1", "experts.weight2")) or len(shape) != 2:
        return replace(tensor, shape=shape)
    experts = (args.integer("num_experts") or 1) // ranks.ep
    first = name.endswith("weight1")
    hidden = shape[0] if first else shape[1]
    dense = all(fragment.strides is None for fragment in weight.fragments)
    if not experts or not hidden or weight.numel % (experts * hidden) or not dense:
        raise source_error(
            "shape-mismatch",
            f"`{name}` of shape {list(shape)} is not the weights of {experts} experts",
            notes=[f"in {weight.file}; `num_experts` is {args.integer('num_experts')}"],
        )
    rest = weight.numel // experts // hidden
    return replace(tensor, shape=(experts, hidden, rest) if first else (experts, rest, hidden))


def _in_order(tensor: LocalTensor, parts: int, ranks: Ranks) -> LocalTensor:
    """Fused queries, keys, and values with their rows as those of checkpoint version 2.0.

    Since then a rank's rows are, for each head, those of query, of key, of value. Version 0 has all
    queries, then all keys, then all values; version 1.0 has, for each head, row 0 of query, of key,
    of value, then row 1 of each.
    """
    version, args, shape = ranks.version, ranks.args, tensor.shape
    count, hidden = args.integer("num_attention_heads"), args.integer("hidden_size")
    width = args.integer("kv_channels") or (hidden // count if count and hidden else 0)
    if not width or shape[0] % (parts * width):
        raise source_error(
            "fused-rows",
            f"the {shape[0]} rows of `{tensor.name}` are not {parts} times those of whole heads",
            notes=[
                f"checkpoint version {version:g} keeps query, key and value in an order of its own",
                f"a head has {width} rows, as the arguments of {args.file} say"
                if width
                else f"the arguments of {args.file} do not say how many rows a head has",
            ],
            helps=["load it in the Megatron that wrote it, and save it again with a newer one"],
        )
    if not tensor.fragments:
        return tensor
    (run,) = tensor.fragments
    strides = run.strides or row_major(shape)
    size = (width, *shape[1:])
    heads = shape[0] // parts // width
    runs = []
    for head, part in product(range(heads), range(parts)):
        if version < 1.0:
            row, step = (part * heads + head) * width, 1
        else:
            row, step = head * parts * width + part, parts
        at = run.byte_offset + row * strides[0] * tensor.dtype.itemsize
        lo = ((head * parts + part) * width, *(0,) * len(shape[1:]))
        steps = (step * strides[0], *strides[1:])
        runs.append(Fragment(0, prod(size), run.file, at, steps, None, Box(lo, size)))
    return replace(tensor, fragments=tuple(runs))


def is_tied(ranks: Ranks) -> bool:
    """Whether the output layer of the last stage is a copy of the embedding."""
    return ranks.pp > 1 and not ranks.args.get("untie_embeddings_and_output_weights")


def known_name(name: str, tied: bool) -> str:
    """The parameter that a stored tensor is: a tied output layer is the embedding."""
    return tied_names().get(name, name) if tied else name
