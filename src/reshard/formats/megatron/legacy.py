"""The weights of a legacy checkpoint: every rank's state dict as local tensors.

Source: Megatron-LM, megatron/training/checkpointing.py `generate_state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from reshard.errors import source_error
from reshard.formats.megatron.modules import is_buffer, is_expert, tied_names
from reshard.formats.megatron.ranks import RankFile, Ranks
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.storage.inert import Record
from reshard.storage.torch_file import TensorRef

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"


@dataclass(frozen=True)
class Chunk:
    """One model chunk of one rank file: a stage, or a virtual stage of it.

    Args:  vpp: number of the chunk on its rank.  tensors: by stored name, in order.
           streams: the bytes of what modules keep besides tensors, by name.
           objects: names of what else the state dict holds, with what it is.
    """

    rank: RankFile
    vpp: int
    tensors: Mapping[str, TensorRef]
    streams: Mapping[str, bytes]
    objects: Mapping[str, str]

    @cached_property
    def parameters(self) -> dict[str, TensorRef]:
        """Those that the optimizer may hold, in the order of `named_parameters`."""
        return {name: ref for name, ref in self.tensors.items() if not is_buffer(name)}


def chunks_of(rank: RankFile) -> tuple[Chunk, ...]:
    """The model chunks of a rank file, in order.

    Raises: ReshardError[no-model].
    """
    keys = sorted(
        (
            key
            for key in rank.root
            if isinstance(key, str) and key.startswith("model") and key[5:].isdecimal()
        ),
        key=lambda key: int(key[5:]),
    )
    trees = [rank.root[key] for key in keys] or [rank.root.get("model")]
    if keys and [int(key[5:]) for key in keys] != list(range(len(keys))):
        raise _no_model(rank, f"its chunks are {', '.join(keys)}")
    out = []
    for index, tree in enumerate(trees):
        if not isinstance(tree, dict):
            raise _no_model(rank, f"its keys are {', '.join(map(str, rank.root))}")
        tensors: dict[str, TensorRef] = {}
        streams: dict[str, bytes] = {}
        objects: dict[str, str] = {}
        for name, value in _flatten("", tree):
            stream = _stream(value)
            if isinstance(value, TensorRef):
                tensors[name] = value
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


def _subclass(rank: RankFile, name: str, value: Record) -> Exception:
    kind = next(part for part in value.name.split(".") if "Tensor" in part)
    return source_error(
        "tensor-subclass",
        f"`{name}` is a `{kind}`, which is not read",
        notes=[
            f"in {rank.file}; the class is of `{value.module}`",
            "its numbers are made of several tensors, in a way that only the class knows",
        ],
        helps=["load it in Megatron, and save it as `torch_dist`, which stores plain tensors"],
    )


def _no_model(rank: RankFile, why: str) -> Exception:
    return source_error("no-model", f"{rank.file} holds no model", notes=[why])


def _flatten(prefix: str, tree: Mapping[object, object]) -> Iterator[tuple[str, object]]:
    """Values by dotted name; older models nest their state dicts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def coords_of(chunk: Chunk, name: str, ranks: Ranks, vpp: int) -> tuple[Coord, ...]:
    """Where on the mesh a tensor is: at one place, and at those of ranks that wrote no file.

    An expert's tensor is not cut by ep but found on one ep rank; a dense one is on all of them.
    """
    rank = chunk.rank
    expert = is_expert(name)
    out = []
    for tp, ep in ranks.places(rank, expert=expert):
        coord = [("vpp", chunk.vpp)] if vpp > 1 else []
        coord += [("pp", rank.pp)] if ranks.pp > 1 else []
        if expert and ranks.etp not in (1, ranks.tp):
            # Cut over etp; what is left of tp numbers the copies.
            coord += [("tp", tp // ranks.etp), ("etp", tp % ranks.etp)]
        else:
            coord += [("tp", tp)] if ranks.tp > 1 else []
        coord += [("ep", ep)] if ranks.ep > 1 else []
        out.append(tuple(coord))
    return tuple(out)


def stored_shape(name: str, ref: TensorRef, ranks: Ranks) -> tuple[int, ...]:
    """The shape that the numbers have: grouped experts' weights are views of three dimensions."""
    if not name.endswith(("experts.weight1", "experts.weight2")) or len(ref.shape) != 2:
        return ref.shape
    experts = (ranks.args.integer("num_experts") or 1) // ranks.ep
    hidden = ref.shape[0] if name.endswith("weight1") else ref.shape[1]
    if not experts or not hidden or ref.numel % (experts * hidden) or not ref.is_contiguous:
        raise source_error(
            "shape-mismatch",
            f"`{name}` of shape {list(ref.shape)} is not the weights of {experts} experts",
            notes=[f"in {ref.file}; `num_experts` is {ranks.args.integer('num_experts')}"],
        )
    rest = ref.numel // experts // hidden
    return (experts, hidden, rest) if name.endswith("weight1") else (experts, rest, hidden)


def local_tensor(
    name: str, state: str, ref: TensorRef, file: str, shape: tuple[int, ...] | None = None
) -> LocalTensor:
    """One stored tensor as it lies.

    Args:  shape: that its numbers have, if not its own.
    """
    strides = None if ref.is_contiguous else ref.strides
    run = Fragment(0, ref.numel, file, ref.byte_offset, strides)
    return LocalTensor(name, state, (), ref.shape if shape is None else shape, ref.dtype, (run,))


def is_tied(ranks: Ranks) -> bool:
    """Whether the output layer of the last stage is a copy of the embedding."""
    return ranks.pp > 1 and not ranks.args.get("untie_embeddings_and_output_weights")


def known_name(name: str, tied: bool) -> str:
    """The parameter that a stored tensor is: a tied output layer is the embedding."""
    return tied_names().get(name, name) if tied else name
